"""The classes that weights were trained on: stored with the tensors, compared with an index.

They are in the attribute ``_metadata`` of torch's state dict. torch.save keeps it, torch.load
reads it with ``weights_only=True``, and load_state_dict ignores it, so weights.pth remains a plain
state dict. A .safetensors file has string metadata.
"""

from collections import OrderedDict
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeline.config import ModelConfig, RunConfig
from pipeline.data.classes import Classes, describe_label_shift, difference
from pipeline.data.index import Index
from pipeline.errors import UserError, warn
from pipeline.models import torchvision_nets
from pipeline.models.weights import unwrap_state
from pipeline.models.weights_names import is_file_name
from pipeline.runtime import torch_file

KEY = "deep_defense_classes"  # of the metadata; torch's own keys there are names of modules
_ACCEPT = "to use it all the same: --data.check_classes false"


def with_classes(state: dict[str, Tensor], classes: Classes) -> dict[str, Tensor]:
    """A state dict that records its classes.

    Args:
        state: the state dict of a net.
        classes: the classes of its outputs.
    """
    described: OrderedDict[str, Tensor] = OrderedDict(state)
    metadata = OrderedDict(getattr(state, "_metadata", {}))
    metadata[KEY] = classes.to_dict()
    # torch saves and loads this attribute; its stubs lack it.
    described._metadata = metadata  # pyright: ignore[reportAttributeAccessIssue]
    return described


def recorded_classes(path: Path) -> Classes | None:
    """The classes that a file of weights or a checkpoint records; None where it records none.

    A file that cannot be read records none: reading its tensors reports the error.
    """
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as file:
                return Classes.from_json((file.metadata() or {}).get(KEY))
        except (OSError, SafetensorError):
            return None
    state = torch_file.peek(path)
    if isinstance(state, dict) and (recorded := Classes.from_dict(state.get("classes"))):
        return recorded  # a checkpoint of a run
    return Classes.from_dict(getattr(unwrap_state(state), "_metadata", {}).get(KEY))


def check_indices(config: RunConfig, train: Index, val: Index) -> None:
    """Compare the classes of the training and the evaluation images.

    Raises:
        UserError: they differ, and ``data.check_classes`` is true.
    """
    changed = difference(val.classes, train.classes)
    if changed:
        _report(
            config,
            f"data.val: the classes of {val.path} are not those of data.train {train.path}: "
            f"{changed}; index both with the same classes: "
            f"tools/index.py folder|tar ... --classes {train.path}",
        )


def check_weights(config: RunConfig, index: Index) -> None:
    """Compare the classes of an index with those that ``model.weights`` are for.

    Raises:
        UserError: they differ, or cannot be the same, and ``data.check_classes`` is true.
    """
    model = config.model
    if model.weights is None:
        return
    if is_file_name(model.weights):
        recorded = recorded_classes(Path(model.weights))
        changed = difference(index.classes, recorded) if recorded is not None else ""
    else:
        recorded = None
        changed = describe_label_shift(index.classes, torchvision_nets.categories(model))
    if changed:
        _report(
            config,
            f"model.weights: {model.weights} is not for the classes of {index.path}: {changed}; "
            "index the images with the classes of the weights: tools/index.py folder|tar ... "
            "--classes FILE (a list, or the index that they were trained on); for other classes, "
            "fine-tune with --model.new_head true",
        )
    elif recorded is None:
        _check_number(config, model, index)


def _check_number(config: RunConfig, model: ModelConfig, index: Index) -> None:
    """Report an index with another number of classes than the net: its labels are not outputs."""
    if model.num_classes is not None and model.num_classes != index.num_classes:
        _report(
            config,
            f"model.num_classes: {index.path} has {index.num_classes} classes, the net "
            f"{model.num_classes}, so its labels are not those of {model.weights}; index the "
            "images with all classes of the weights, in their order: tools/index.py folder|tar "
            "... --classes FILE (a class id a line, for example LOC_synset_mapping.txt)",
        )


def _report(config: RunConfig, text: str) -> None:
    if config.data.check_classes:
        raise UserError(f"{text}; {_ACCEPT}")
    warn(text)
