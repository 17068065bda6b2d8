"""Weights of nets: read from files or by name, compared with the net, and loaded.

In: a net and `ModelConfig`. Out: the net with its weights; its state dict for a file.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.config import ModelConfig
from pipeline.config.text import did_you_mean, did_you_mean_file
from pipeline.errors import UserError, first_few, first_line, note
from pipeline.models import timm_nets, torchvision_nets
from pipeline.models.head import head_keys, resized_keys
from pipeline.models.weights_names import PRETRAINED, is_file_name
from pipeline.runtime import torch_file

StateDict = dict[str, Tensor]

_NORMALIZER = ("normalizer.new_mean", "normalizer.new_std")  # of the library robustness


def load_weights(
    net: nn.Module, config: ModelConfig, num_classes: int, image_size: int | None = None
) -> None:
    """Load ``config.weights``: a local file, the name of torchvision's weights, or timm's.

    With ``config.new_head`` the last layer keeps its present values.

    Args:
        net: the net of ``config``.
        config: its options.
        num_classes: number of its outputs.
        image_size: as for `timm_nets.create`.

    Raises:
        UserError: no such file or name, an unreadable file, numbers that are not finite, or a
            mismatch, key by key.
    """
    name = config.weights
    if name is None:
        raise ValueError("load_weights needs config.weights")
    if is_file_name(name):
        path = Path(name)
        # Only a message needs the names, and importing torchvision takes seconds.
        names = () if path.exists() else torchvision_nets.weights_names(config.name)
        state = read_state(path, names)
    else:
        state = _named_state(config, image_size)
    state = torchvision_nets.without_auxiliary(config.name, state)
    expected = net.state_dict()
    # Earlier versions of torch did not store batch norm's counters.
    counters = {key: v for key, v in expected.items() if key.endswith("num_batches_tracked")}
    state = {**counters, **state}
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


def _named_state(config: ModelConfig, image_size: int | None) -> StateDict:
    """The state dict of published weights."""
    if not timm_nets.is_timm(config.name):
        return torchvision_nets.named_state(config)
    if config.weights != PRETRAINED:
        raise UserError(
            f"model.weights: {config.weights} is neither a file nor pretrained, the weights that "
            f"timm publishes for {config.name}"
            f"{did_you_mean(str(config.weights), [PRETRAINED])}"
        )
    return timm_nets.published_state(config.name, image_size)


def _nonfinite_keys(expected: StateDict, state: StateDict) -> list[str]:
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


def portable_state(net: nn.Module) -> StateDict:
    """The net's state dict with portable tensors: contiguous, on the CPU, no shared memory."""
    state = net.state_dict()
    for key, value in state.items():
        state[key] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
    return state


def read_state(path: Path, names: Sequence[str] = ()) -> StateDict:
    """A state dict from .safetensors or a torch file: bare, or under ``model``/``state_dict``.

    Of a net that the library robustness (MadryLab) wrapped, the state dict of the net itself.

    Args:
        path: the file.
        names: weights by name, one of which may have been meant; such as NET_Weights.NAME.

    Raises:
        UserError: the file is missing, damaged, or holds other things than tensors.
    """
    if not path.is_file():
        hint = did_you_mean(path.suffix[1:], names) or did_you_mean_file(path, names=names)
        raise UserError(f"model.weights: no file {path}{hint}")
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
    state = unwrap_state(state)
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"model.weights: {path} holds no state dict of tensors")
    state = {key.removeprefix("module."): value for key, value in state.items()}
    return _unwrapped(path, state) if state.keys() >= set(_NORMALIZER) else state


def unwrap_state(content: Any) -> Any:
    """The state dict inside the content of a checkpoint or another file; else the content."""
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    return content


def _unwrapped(path: Path, state: StateDict) -> StateDict:
    """The net without the library's normalisation layer and its second copy for attacks."""
    mean, std = ([round(v, 6) for v in state[key].flatten().tolist()] for key in _NORMALIZER)
    note(
        f"{path} is of the library robustness: its net is used, without the normalisation layer; "
        f"the net was trained with data.mean {mean} and data.std {std}"
    )
    prefix = "model."
    return {key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)}


def _mismatches(expected: StateDict, state: StateDict) -> list[str]:
    """Differences in names and shapes, one phrase each; shapes come first."""
    missing = [f"{key} is missing" for key in expected.keys() - state.keys()]
    extra = [f"{key} is unknown to the net" for key in state.keys() - expected.keys()]
    shapes = [
        f"{key} is {tuple(state[key].shape)}, the net has {tuple(value.shape)}"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    ]
    return sorted(shapes) + sorted(missing) + sorted(extra)
