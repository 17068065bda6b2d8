"""Networks by name, and their weights.

In: `ModelConfig`. Out: an ``nn.Module`` from images to logits.
"""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline import nets
from pipeline.config import DataConfig, ModelConfig
from pipeline.config.text import did_you_mean
from pipeline.errors import UserError, brief
from pipeline.importing import import_callable

State = dict[str, Tensor]


_OWN = {
    "mlp": nets.mlp,
    "lenet": nets.lenet,
    "convnet": nets.convnet,
    "nin": nets.nin,
    "caffe_alexnet": nets.caffe_alexnet,
}


def build(config: ModelConfig, num_classes: int) -> nn.Module:
    """Make the net of ``config`` with ``num_classes`` outputs and load its weights, if any.

    Raises:
        UserError: no such net, or weights that are missing or do not fit.
    """
    net = _construct(config.name, num_classes)
    _make_twice_differentiable(net)
    if config.init_std is not None:
        _draw_weights(net, config.init_std)
    if config.weights is not None:
        load_weights(net, config)
    if config.freeze_batch_norm:
        for module in batch_norms(net):
            module.requires_grad_(False)
    return net


def _construct(name: str, num_classes: int) -> nn.Module:
    if name in _OWN:
        return _OWN[name](num_classes)
    if ":" in name:
        return _own(name, num_classes)
    known = _zoo().list_models(module=_zoo())
    if name not in known:
        near = did_you_mean(name, [*_OWN, *known])
        names = f"{', '.join(_OWN)}, package.module:callable, or one of torchvision's: "
        names += ", ".join(known)
        raise UserError(f"model.name: no net {name!r}{near or f'; use {names}'}")
    options = {"aux_logits": False} if name in ("googlenet", "inception_v3") else {}
    if options:
        options["init_weights"] = True
    return _zoo().get_model(name, weights=None, num_classes=num_classes, **options)


def _zoo() -> Any:
    """torchvision.models, imported where it is needed: that takes as long as torch itself."""
    import torchvision

    return torchvision.models


def _draw_weights(net: nn.Module, std: float) -> None:
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class _Hardsigmoid(nn.Module):
    """nn.Hardsigmoid by operations whose second derivatives torch knows."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu6(x + 3) / 6


def _make_twice_differentiable(net: nn.Module) -> None:
    """Replace the layers of torchvision's nets that the unrolled attack could not pass."""
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Hardsigmoid):
                setattr(module, name, _Hardsigmoid())


def _own(name: str, num_classes: int) -> nn.Module:
    function = import_callable(name, "model.name")
    takes = "num_classes" in inspect.signature(function).parameters
    net = function(num_classes=num_classes) if takes else function()
    if not isinstance(net, nn.Module):
        raise UserError(f"model.name: {name} returned a {type(net).__name__}, not an nn.Module")
    return net


def load_weights(net: nn.Module, config: ModelConfig) -> None:
    """Load ``config.weights``, a local file or the name of torchvision's weights.

    Raises:
        UserError: no such file or name, an unreadable file, or a mismatch, key by key.
    """
    name = config.weights
    state = read_state(Path(name)) if _is_file_name(name) else _torchvision_state(config)
    expected = net.state_dict()
    problems = _mismatches(expected, state)
    if problems:
        more = f", and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise UserError(
            f"model.weights: {name} does not fit {config.name}: {'; '.join(problems[:8])}{more}"
        )
    net.load_state_dict(state)


def read_state(path: Path) -> State:
    """A state dict from .safetensors or a torch file: bare, or under ``model``/``state_dict``."""
    if not path.is_file():
        raise UserError(f"model.weights: no file {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError) as error:
        raise UserError(f"model.weights: {path} cannot be read: {brief(error)}") from None
    except Exception as error:  # torch raises pickle.UnpicklingError for what it refuses to run
        raise UserError(
            f"model.weights: {path} is not a file of plain tensors ({brief(error)}); "
            "save the net's state_dict(), or convert it to .safetensors"
        ) from None
    for key in ("model", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"model.weights: {path} holds no state dict of tensors")
    return {key.removeprefix("module."): value for key, value in state.items()}


def _is_file_name(name: str) -> bool:
    return Path(name).suffix != "" or "/" in name or Path(name).exists()


def _torchvision_state(config: ModelConfig) -> State:
    try:
        weights = _zoo().get_model_weights(config.name)[config.weights]
        return dict(weights.get_state_dict(progress=False, check_hash=True))
    except (KeyError, ValueError):
        raise UserError(
            f"model.weights: {config.weights} is neither a file nor the name of torchvision's "
            f"weights for {config.name}"
        ) from None
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"model.weights: {config.weights} cannot be downloaded ({brief(error)}); fetch the "
            "file on a machine that can, and give its path"
        ) from None


def preprocessing_advice(model: ModelConfig, data: DataConfig) -> str:
    """Where the data options are not those that torchvision's named weights were made for."""
    if model.weights is None or _is_file_name(model.weights):
        return ""
    made = _zoo().get_model_weights(model.name)[model.weights].transforms()
    wanted = {
        "resize": made.resize_size[0],
        "crop": made.crop_size[0],
        "interpolation": made.interpolation.value,
        "mean": list(made.mean),
        "std": list(made.std),
    }
    options = [
        f"--data.{name} {str(value).replace(' ', '')}"
        for name, value in wanted.items()
        if getattr(data, name) != value
    ]
    if not options:
        return ""
    return f"warning: the weights {model.weights} were made for {' '.join(options)}"


def _mismatches(expected: State, state: State) -> list[str]:
    optional = {key for key in expected if key.endswith("num_batches_tracked")}
    missing = [f"{key} is missing" for key in expected.keys() - state.keys() - optional]
    extra = [f"{key} is unknown to the net" for key in state.keys() - expected.keys()]
    for key in optional - state.keys():
        state[key] = expected[key]
    shapes = [
        f"{key} is {tuple(state[key].shape)}, the net has {tuple(value.shape)}"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    ]
    return sorted(shapes) + sorted(missing) + sorted(extra)


def batch_norms(net: nn.Module) -> Iterator[nn.Module]:
    """The batch-norm layers of a net, of any dimension."""
    return (m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))


def draws(module: nn.Module) -> bool:
    """Whether a layer draws random numbers while it trains: dropout, or paths that are dropped."""
    paths = ("StochasticDepth", "DropPath")  # torchvision's and timm's
    return isinstance(module, nn.modules.dropout._DropoutNd) or type(module).__name__ in paths
