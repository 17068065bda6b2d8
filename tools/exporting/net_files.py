"""model.safetensors and config.json of an export.

config.json has the keys by which timm loads a folder or a repository of the Hugging Face hub. For
other libraries the same keys are used, as far as they apply. The key ``deep_defense`` has the
options of this project.
"""

import json
import math
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from exporting.source import ExportedNet
from pipeline.models import timm_nets, torchvision_nets
from pipeline.models.build import PAPER_NETS
from pipeline.models.weight_classes import KEY
from pipeline.models.weights import portable_state
from pipeline.reports.evaluation_folders import EXPORT_FILES
from pipeline.runtime.files import atomic_write

NET_CONFIG_FILE, WEIGHTS = EXPORT_FILES
MEAN = "mean.npy"
EXPORT_KEY = "deep_defense"  # in config.json; tells an export from other folders
_FORMAT = 1


def library_of(exported: ExportedNet) -> str:
    """The package that builds the net: torchvision, timm, this project, or the user's module."""
    name = exported.model.name
    if timm_nets.is_timm(name):
        return "timm"
    if name in PAPER_NETS:
        return "deep-defense-pipeline"
    return name.partition(":")[0] if ":" in name else "torchvision"


def write_weights(exported: ExportedNet, folder: Path) -> None:
    """Write model.safetensors: the state dict in the library's names, with the classes."""
    metadata = {"format": "pt"}
    if exported.classes is not None:
        metadata[KEY] = json.dumps(exported.classes.to_dict())
    with atomic_write(folder / WEIGHTS) as partial:
        save_file(portable_state(exported.net), partial, metadata)


def config_of(exported: ExportedNet) -> dict[str, Any]:
    """The values of config.json."""
    values: dict[str, Any] = {
        "architecture": architecture(exported),
        "num_classes": exported.num_classes,
        "model_args": model_arguments(exported),
    }
    if timm_nets.is_timm(exported.model.name):
        values["num_features"] = getattr(exported.net, "num_features", None)
        values["pretrained_cfg"] = _timm_config(exported)
    if exported.classes is not None:
        ids = exported.classes.identities
        values["label_names"] = list(ids)
        values["label_descriptions"] = dict(zip(ids, exported.classes.names, strict=True))
    values[EXPORT_KEY] = {
        "format": _FORMAT,
        "model": exported.model.name,
        "preprocessing": preprocessing(exported),
    }
    return values


def architecture(exported: ExportedNet) -> str:
    """The name by which the library builds the net."""
    name = exported.model.name.removeprefix(timm_nets.PREFIX)
    if timm_nets.is_timm(exported.model.name):
        return name.partition(".")[0]
    return name.partition(":")[2] if ":" in name else name


def model_arguments(exported: ExportedNet) -> dict[str, Any]:
    """The arguments beside ``num_classes`` with which the library builds the net."""
    name, size = exported.model.name, exported.data.crop_size
    if timm_nets.is_timm(name):
        return timm_nets.size_options(name, size)
    return torchvision_nets.options(name)


def preprocessing(exported: ExportedNet) -> dict[str, Any]:
    """How an image becomes the net's input; mean and std are for pixels in [0, 1]."""
    data = exported.data
    return {
        "channels": data.channels,
        "resize_size": data.resize_size,
        "crop_size": data.crop_size,
        "interpolation": data.interpolation,
        "mean": MEAN if isinstance(data.mean, str) else data.mean,
        "std": data.std,
    }


def crop_pct(crop_size: int, resize_size: int) -> float:
    """timm's ``crop_pct``: floor(crop_size / crop_pct) is exactly resize_size."""
    share = crop_size / resize_size
    while math.floor(crop_size / share) < resize_size:
        share = math.nextafter(share, 0.0)
    return share


def _timm_config(exported: ExportedNet) -> dict[str, Any]:
    """timm's description of the weights."""
    data, published = exported.data, timm_nets.published_fields(exported.model.name)
    values = {
        "num_classes": exported.num_classes,
        "input_size": [data.channels, data.crop_size, data.crop_size],
        "crop_pct": crop_pct(data.crop_size, data.resize_size),
        "crop_mode": "center",
        "interpolation": data.interpolation,
        "std": data.std,
        "custom_load": False,  # the file has timm's own names
    }
    if not isinstance(data.mean, str):
        values["mean"] = data.mean
    kept = ("fixed_input_size", "first_conv", "classifier")
    return values | {name: published[name] for name in kept}
