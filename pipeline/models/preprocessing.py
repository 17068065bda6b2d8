"""The preprocessing that weights were trained with: advice, and ``data.preprocessing: auto``."""

from dataclasses import replace
from typing import Any, TypeVar, get_args, get_type_hints

from pipeline.config import DataConfig, ModelConfig, RunConfig
from pipeline.config.checks import OptionError
from pipeline.errors import UserError, note, warn
from pipeline.models import timm_nets, torchvision_nets
from pipeline.models.published import PublishedPreprocessing
from pipeline.models.weights_names import is_file_name

ConfigT = TypeVar("ConfigT", bound=RunConfig)

_NAMES = ("mean", "std", "crop_size", "resize_size", "interpolation")
_AUTO = "data.preprocessing auto"


def preprocessing_advice(model: ModelConfig, data: DataConfig) -> str:
    """The data options that published weights were trained with, where they differ.

    Empty if none differs or the weights are not published by torchvision or timm.
    """
    if model.weights is None or is_file_name(model.weights):
        return ""
    options = [
        f"--data.{name} {_shown(value)}"
        for name, value in _published(model).data_options().items()
        if getattr(data, name) != value
    ]
    if not options:
        return ""
    return f"the weights {model.weights} were trained with {' '.join(options)}"


def resolve_preprocessing(config: ConfigT) -> ConfigT:
    """The configuration with the values that ``data.preprocessing: auto`` stands for.

    The option itself becomes ``options``, so that the stored configuration states the values.
    Options that the user has set keep their values.

    Raises:
        UserError: the preprocessing of the net is not known, or does not fit the options.
    """
    data, model = config.data, config.model
    if data.preprocessing == "options":
        return config
    published = _published(model)
    if data.channels != len(published.mean):
        raise UserError(
            f"{_AUTO}: {model.name} takes images of {len(published.mean)} channels, and "
            f"data.channels is {data.channels}"
        )
    crop_size = data.crop_size if "crop_size" in data.explicit else None
    values = {
        name: value
        for name, value in published.data_options(crop_size).items()
        if name not in data.explicit
    }
    warn(*_replace_unsupported(values, published, model.name))
    try:
        resolved = replace(data, preprocessing="options", **values)
    except OptionError as error:
        raise UserError(f"{_AUTO}: {error.within('data')}") from None
    note(_description(resolved, values, model))
    return replace(config, data=resolved)


def _published(model: ModelConfig) -> PublishedPreprocessing:
    """The preprocessing of published weights, and of all nets of timm.

    Raises:
        UserError: it is not known.
    """
    if timm_nets.is_timm(model.name):
        return timm_nets.preprocessing(model.name)
    if model.weights is None or is_file_name(model.weights):
        weights = "random weights" if model.weights is None else model.weights
        raise UserError(
            f"{_AUTO}: the preprocessing of {model.name} with {weights} is not known; it is for "
            "nets of timm and for torchvision's weights by name: use data.preprocessing options, "
            f"with {', '.join(f'data.{name}' for name in _NAMES)}"
        )
    return torchvision_nets.preprocessing(model)


def _replace_unsupported(
    values: dict[str, Any], published: PublishedPreprocessing, net: str
) -> list[str]:
    """Change values that the loader does not have; a line for each of them."""
    lines = []
    supported = get_args(get_type_hints(DataConfig)["interpolation"])
    if values.get("interpolation", supported[0]) not in supported:
        lines.append(f"interpolation {values['interpolation']}: bicubic is used")
        values["interpolation"] = "bicubic"
    if "resize_size" in values and published.crop_pct > 1:
        lines.append(f"crop_pct {published.crop_pct:g}, above 1: images are not padded")
        values["resize_size"] = values.get("crop_size", values["resize_size"])
    if published.crop_mode != "center":
        lines.append(
            f"crop_mode {published.crop_mode}: the shorter side is resized to data.resize_size, "
            "and the centre square is taken"
        )
    return [f"{_AUTO}: {net} was trained with what is not supported, {line}" for line in lines]


def _description(data: DataConfig, values: dict[str, Any], model: ModelConfig) -> str:
    """A line with the values in use, by their origin."""
    publisher = "timm" if timm_nets.is_timm(model.name) else f"torchvision's {model.weights}"
    taken = [name for name in _NAMES if name in values]
    own = [name for name in _NAMES if name not in values]
    line = f"{_AUTO}, {model.name} by {publisher}: {_listed(data, taken)}"
    if not taken:
        line = f"{_AUTO} has no effect: all of its options are set"
    return line + (f"; set by options: {_listed(data, own)}" if own else "")


def _listed(data: DataConfig, names: list[str]) -> str:
    return ", ".join(f"{name} {_shown(getattr(data, name))}" for name in names)


def _shown(value: Any) -> str:
    return str(value).replace(" ", "")
