"""Nets of the package timm, as ``model.name: timm:NAME``, and the weights that it publishes.

In: the name of a net. Out: the net, its published state dict, and the preprocessing of its images.
timm is optional (extra ``timm``), so it is imported where it is used.
"""

import dataclasses
import importlib
from typing import Any

from torch import Tensor, nn

from pipeline.config.text import did_you_mean
from pipeline.errors import UserError, first_line, note
from pipeline.models.published import PublishedPreprocessing

PREFIX = "timm:"
_REMEDY = 'install it: pip install -e ".[timm]", or pip install timm'


def is_timm(name: str) -> bool:
    """Whether ``model.name`` is a net of timm."""
    return name.startswith(PREFIX)


def create(name: str, num_classes: int, image_size: int | None = None) -> nn.Module:
    """A net with random weights.

    Args:
        name: its name, as timm:ARCHITECTURE or timm:ARCHITECTURE.TAG; the tag, which names
            weights, has no effect here.
        num_classes: number of its outputs.
        image_size: side of its input in pixels, for nets that are built for one size (ViT, Swin);
            None: the size that timm states for the net.

    Raises:
        UserError: timm is missing or has no such net, or the net cannot have this size.
    """
    timm, options = _timm(), size_options(name, image_size)
    try:
        return timm.create_model(name.removeprefix(PREFIX), num_classes=num_classes, **options)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        size = f" for images of {image_size} x {image_size} (data.crop_size)" if options else ""
        raise UserError(f"model.name: {name} cannot be built{size}: {first_line(error)}") from None


def published_state(name: str, image_size: int | None = None) -> dict[str, Tensor]:
    """The state dict that timm publishes for a net, downloaded if necessary.

    The head is that of the publication. timm resamples position embeddings to the image size.

    Args:
        name: as for `create`.
        image_size: as for `create`.

    Raises:
        UserError: there are no such weights, or they cannot be downloaded.
    """
    timm, config = _timm(), _published_config(name)
    if not config.has_weights:
        names = timm.list_pretrained(f"{name.removeprefix(PREFIX).partition('.')[0]}*")
        near = f"; timm has {', '.join(names[:8])}" if names else ""
        raise UserError(f"model.weights: timm publishes no weights for {name}{near}")
    note(
        f"model.weights: reading timm's weights of {name}, downloaded unless they are in its cache"
    )
    try:
        net = timm.create_model(
            name.removeprefix(PREFIX), pretrained=True, **size_options(name, image_size)
        )
    # The download has many errors of its own: those of the hub, of its HTTP client, of the network.
    except Exception as error:
        raise UserError(
            f"model.weights: timm's weights of {name} cannot be loaded ({first_line(error)}); "
            "fetch their file on a machine that can (.safetensors or .pth), and give its path"
        ) from None
    return net.state_dict()


def preprocessing(name: str) -> PublishedPreprocessing:
    """The preprocessing that timm states for a net.

    Raises:
        UserError: timm is missing or has no such net, or its images are not square.
    """
    config = _published_config(name)
    _, height, width = config.input_size
    if height != width:
        raise UserError(
            f"data.preprocessing: {name} takes images of {height} x {width} pixels; only square "
            "ones are supported"
        )
    return PublishedPreprocessing(
        crop_size=height,
        crop_pct=config.crop_pct,
        crop_mode=config.crop_mode,
        interpolation=config.interpolation,
        mean=list(config.mean),
        std=list(config.std),
    )


def size_options(name: str, image_size: int | None) -> dict[str, int]:
    """timm's option of the side of the input in pixels, for nets that are built for one size."""
    has_one_size = _published_config(name).fixed_input_size  # also checks the name
    return {"img_size": image_size} if image_size is not None and has_one_size else {}


def published_fields(name: str) -> dict[str, Any]:
    """The fields of timm's ``PretrainedCfg`` of a net.

    Raises:
        UserError: timm is missing, or has no such net.
    """
    return dataclasses.asdict(_published_config(name))


def _timm() -> Any:
    """The package.

    Raises:
        UserError: it is not installed, or cannot be imported.
    """
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        reason = "" if error.name == "timm" else f" ({first_line(error)})"
        raise UserError(
            f"model.name: timm:NAME needs the package timm{reason}; {_REMEDY}"
        ) from None


def _published_config(name: str) -> Any:
    """timm's ``PretrainedCfg`` of a net.

    Raises:
        UserError: timm is missing, or has no such net or tag.
    """
    timm, short_name = _timm(), name.removeprefix(PREFIX)
    architecture = short_name.partition(".")[0]
    known = timm.is_model(architecture)
    try:
        config = timm.models.get_pretrained_cfg(short_name)  # None: no such architecture
    except RuntimeError:  # no such tag
        config = None
    if config is not None:
        return config
    names = timm.list_pretrained(f"{architecture}.*") if known else timm.list_models()
    near = did_you_mean(short_name, names, prefix=PREFIX)
    if known:
        near = f"; its tags: {', '.join(full.partition('.')[2] for full in names) or 'none'}{near}"
    else:
        near = near or "; timm.list_models() lists all"
    raise UserError(f"model.name: timm has no net {short_name!r}{near}")
