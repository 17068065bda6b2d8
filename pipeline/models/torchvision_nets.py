"""torchvision's classifiers, and the weights that it publishes for them.

In: the name of a net, the name of weights. Out: the net, its state dict, its classes and the
preprocessing of its images.
"""

from typing import Any

from torch import Tensor, nn

from pipeline.config import ModelConfig
from pipeline.config.text import did_you_mean
from pipeline.errors import UserError, first_line
from pipeline.models.published import PublishedPreprocessing

# torchvision's nets with auxiliary classifiers, which are left out. Their named weights include
# these, and were trained on pixels from -1 to 1.
_WITH_AUXILIARY = ("googlenet", "inception_v3")
_AUXILIARY_KEYS = ("aux1.", "aux2.", "AuxLogits.")


def names() -> list[str]:
    """The names of all classifiers."""
    return _zoo().list_models(module=_zoo())


def create(name: str, num_classes: int) -> nn.Module:
    """A net with random weights, without auxiliary classifiers."""
    return _zoo().get_model(name, weights=None, num_classes=num_classes, **options(name))


def options(name: str) -> dict[str, Any]:
    """torchvision's options of a net, beside the number of its classes."""
    return {"aux_logits": False, "init_weights": True} if name in _WITH_AUXILIARY else {}


def _zoo() -> Any:
    """torchvision.models, imported late: the import takes as long as that of torch."""
    import torchvision

    return torchvision.models


def without_auxiliary(name: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without the tensors of the auxiliary classifiers that the net may have.

    Args:
        name: the net, of any kind.
        state: its state dict.
    """
    if name not in _WITH_AUXILIARY:
        return state
    return {key: v for key, v in state.items() if not key.startswith(_AUXILIARY_KEYS)}


def named_state(config: ModelConfig) -> dict[str, Tensor]:
    """The state dict of the weights that ``config.weights`` names, downloaded if necessary.

    Raises:
        UserError: there are no such weights for this net, or they cannot be downloaded.
    """
    weights = _named_weights(config)
    try:
        return dict(weights.get_state_dict(progress=False, check_hash=True))
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"model.weights: {config.weights} cannot be downloaded ({first_line(error)}); fetch "
            "the file on a machine that can, and give its path"
        ) from None


def categories(config: ModelConfig) -> list[str]:
    """Class names of torchvision's named weights, in the order of the net's outputs.

    Empty if there are no such weights.
    """
    try:
        return list(_zoo().get_model_weights(config.name)[config.weights].meta["categories"])
    except (KeyError, ValueError):
        return []


def preprocessing(config: ModelConfig) -> PublishedPreprocessing:
    """The preprocessing that the weights named by ``config.weights`` were trained with.

    Raises:
        UserError: there are no such weights for this net.
    """
    transforms = _named_weights(config).transforms()
    from_minus_1_to_1 = config.name in _WITH_AUXILIARY
    return PublishedPreprocessing(
        crop_size=transforms.crop_size[0],
        crop_pct=transforms.crop_size[0] / transforms.resize_size[0],
        interpolation=transforms.interpolation.value,
        mean=[0.5] * 3 if from_minus_1_to_1 else list(transforms.mean),
        std=[0.5] * 3 if from_minus_1_to_1 else list(transforms.std),
    )


def _named_weights(config: ModelConfig) -> Any:
    """torchvision's entry of the weights that ``config.weights`` names.

    Raises:
        UserError: there are no such weights for this net.
    """
    try:
        return _zoo().get_model_weights(config.name)[config.weights]
    except (KeyError, ValueError):
        names = weights_names(config.name)
        hint = did_you_mean(str(config.weights), names)
        if names and not hint:
            hint = f"; torchvision has {', '.join(names)}"
        raise UserError(
            f"model.weights: {config.weights} is neither a file nor the name of torchvision's "
            f"weights for {config.name}{hint}"
        ) from None


def weights_names(name: str) -> list[str]:
    """The names of the weights that torchvision has for a net; none for nets of other kinds."""
    try:
        return list(_zoo().get_model_weights(name).__members__)
    except ValueError:
        return []
