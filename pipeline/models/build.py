"""Networks by name, and their weights.

In: `ModelConfig`. Out: an ``nn.Module`` from images to logits.
"""

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.config import DataConfig, ModelConfig
from pipeline.config.text import did_you_mean
from pipeline.errors import UserError, first_few, first_line, note
from pipeline.models import paper_nets
from pipeline.models.head import head_keys, resized_keys
from pipeline.models.second_derivative import make_twice_differentiable
from pipeline.runtime import torch_file
from pipeline.runtime.importing import import_callable, report_exceptions

State = dict[str, Tensor]

PAPER_NETS = {
    "mlp": paper_nets.mlp,
    "lenet": paper_nets.lenet,
    "convnet": paper_nets.convnet,
    "nin": paper_nets.nin,
    "caffe_alexnet": paper_nets.caffe_alexnet,
}

# torchvision's nets with auxiliary classifiers, which are left out. Their named weights include
# these, and were trained on pixels from -1 to 1.
_WITH_AUXILIARY = ("googlenet", "inception_v3")
_AUXILIARY_KEYS = ("aux1.", "aux2.", "AuxLogits.")


def build(config: ModelConfig, num_classes: int) -> nn.Module:
    """The net of ``config`` with ``num_classes`` outputs and its weights, if any are named.

    Raises:
        UserError: no such net, or weights that are missing or do not fit.
    """
    net = _construct(config.name, num_classes)
    make_twice_differentiable(net)
    if config.init_std is not None:
        _draw_weights(net, config.init_std)
    if config.weights is not None:
        load_weights(net, config, num_classes)
    elif config.new_head:
        raise UserError("model.new_head: there are no weights to keep; give model.weights")
    if config.freeze_batch_norm:
        for module in batch_norms(net):
            module.requires_grad_(requires_grad=False)
    return net


def _construct(name: str, num_classes: int) -> nn.Module:
    if name in PAPER_NETS:
        return PAPER_NETS[name](num_classes)
    if ":" in name:
        return _import_user_net(name, num_classes)
    zoo_names = _zoo().list_models(module=_zoo())
    if name not in zoo_names:
        near = did_you_mean(name, [*PAPER_NETS, *zoo_names])
        names = f"{', '.join(PAPER_NETS)}, package.module:callable, or one of torchvision's: "
        names += ", ".join(zoo_names)
        raise UserError(f"model.name: no net {name!r}{near or f'; use {names}'}")
    options = {"aux_logits": False, "init_weights": True} if name in _WITH_AUXILIARY else {}
    return _zoo().get_model(name, weights=None, num_classes=num_classes, **options)


def _zoo() -> Any:
    """torchvision.models, imported late: the import takes as long as that of torch."""
    import torchvision

    return torchvision.models


def _draw_weights(net: nn.Module, std: float) -> None:
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _import_user_net(name: str, num_classes: int) -> nn.Module:
    function = import_callable(name, "model.name")
    with report_exceptions(name, "model.name"):
        net = _call_factory(function, num_classes)
    if not isinstance(net, nn.Module):
        raise UserError(f"model.name: {name} returned a {type(net).__name__}, not an nn.Module")
    return net


def _call_factory(function: Callable[..., Any], num_classes: int) -> Any:
    """Call with num_classes=N if the function accepts it."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # functions written in C may have none
        return function()
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if not takes_any and "num_classes" not in parameters:
        return function()
    try:
        return function(num_classes=num_classes)
    except TypeError as error:
        # **kwargs may be passed to a function that does not accept it.
        if not takes_any or "unexpected keyword argument 'num_classes'" not in str(error):
            raise
    return function()


def load_weights(net: nn.Module, config: ModelConfig, num_classes: int) -> None:
    """Load ``config.weights``, a local file or the name of torchvision's weights.

    With ``config.new_head`` the last layer keeps its present values.

    Raises:
        UserError: no such file or name, an unreadable file, numbers that are not finite, or a
            mismatch, key by key.
    """
    name = config.weights
    if name is None:
        raise ValueError("load_weights needs config.weights")
    state = read_state(Path(name)) if is_file_name(name) else _torchvision_state(config)
    if config.name in _WITH_AUXILIARY:
        state = {key: v for key, v in state.items() if not key.startswith(_AUXILIARY_KEYS)}
    expected = net.state_dict()
    if config.new_head:
        head = head_keys(net, state, num_classes)
        state = {**state, **{key: expected[key] for key in head}}
        note(f"a new head of {num_classes} classes: {', '.join(head)}; other weights from {name}")
    resized = resized_keys(expected, state, num_classes)
    problems = _mismatches(expected, state)
    if problems:
        details = first_few(problems, separator="; ")
        message = f"model.weights: {name} does not fit {config.name}: {details}"
        if len(problems) == len(resized):
            message += (
                f"; its head is for {len(state[resized[0]])} classes: index the images with all "
                "of them, in their order (tools/index.py folder|tar ... --classes FILE), or "
                f"fine-tune with model.new_head true for {num_classes} other classes"
            )
        raise UserError(message)
    damaged = _nonfinite_keys(expected, state)
    if damaged:
        raise UserError(
            f"model.weights: {name} holds numbers that are not finite in {first_few(damaged)}; "
            "it is damaged, or of a run that diverged: use another file"
        )
    net.load_state_dict(state)


def _nonfinite_keys(expected: State, state: State) -> list[str]:
    """Names of tensors with NaN or infinity where the new net has none.

    Buffers may contain infinity: attention masks do.
    """
    return [
        key
        for key, value in state.items()
        if value.is_floating_point()
        and not value.isfinite().all()
        and (expected[key].isfinite() & ~value.isfinite()).any()
    ]


def portable_state(net: nn.Module) -> State:
    """The net's state dict with portable tensors: contiguous, on the CPU, no shared memory."""
    state = net.state_dict()
    for key, value in state.items():
        state[key] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
    return state


def read_state(path: Path) -> State:
    """A state dict from .safetensors or a torch file: bare, or under ``model``/``state_dict``.

    Raises:
        UserError: the file is missing, damaged, or holds other things than tensors.
    """
    if not path.is_file():
        raise UserError(f"model.weights: no file {path}")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch_file.load(path)
    except torch_file.ForeignObject as error:
        raise UserError(
            f"model.weights: {path} {error}; save the net's state_dict(), or convert it to "
            ".safetensors"
        ) from None
    except torch_file.UnreadableFile as error:
        raise UserError(f"model.weights: {path} {error}; fetch or write it again") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"model.weights: {path} cannot be read: {first_line(error)}") from None
    for key in ("model", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"model.weights: {path} holds no state dict of tensors")
    return {key.removeprefix("module."): value for key, value in state.items()}


def is_file_name(name: str) -> bool:
    """Whether ``model.weights`` is a file, not the name of torchvision's weights."""
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
            f"model.weights: {config.weights} cannot be downloaded ({first_line(error)}); fetch "
            "the file on a machine that can, and give its path"
        ) from None


def torchvision_categories(config: ModelConfig) -> list[str]:
    """Class names of torchvision's named weights, in the order of the net's outputs.

    Empty if there are no such weights.
    """
    try:
        return list(_zoo().get_model_weights(config.name)[config.weights].meta["categories"])
    except (KeyError, ValueError):
        return []


def preprocessing_advice(model: ModelConfig, data: DataConfig) -> str:
    """The data options that torchvision's named weights were trained with, where they differ.

    Empty if none differs or the weights are not torchvision's.
    """
    if model.weights is None or is_file_name(model.weights):
        return ""
    transforms = _zoo().get_model_weights(model.name)[model.weights].transforms()
    from_minus_1_to_1 = model.name in _WITH_AUXILIARY
    expected = {
        "resize_size": transforms.resize_size[0],
        "crop_size": transforms.crop_size[0],
        "interpolation": transforms.interpolation.value,
        "mean": [0.5] * 3 if from_minus_1_to_1 else list(transforms.mean),
        "std": [0.5] * 3 if from_minus_1_to_1 else list(transforms.std),
    }
    options = [
        f"--data.{name} {str(value).replace(' ', '')}"
        for name, value in expected.items()
        if getattr(data, name) != value
    ]
    if not options:
        return ""
    return f"the weights {model.weights} were trained with {' '.join(options)}"


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
    """Whether a layer draws random numbers in training mode: dropout, stochastic depth."""
    paths = ("StochasticDepth", "DropPath")  # torchvision's and timm's
    return isinstance(module, nn.modules.dropout._DropoutNd) or type(module).__name__ in paths
