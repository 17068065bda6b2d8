"""The preprocessing of images that weights were trained with."""

from pipeline.config import DataConfig, ModelConfig
from pipeline.models import torchvision_nets
from pipeline.models.weights import is_file_name


def preprocessing_advice(model: ModelConfig, data: DataConfig) -> str:
    """The data options that torchvision's named weights were trained with, where they differ.

    Empty if none differs or the weights are not torchvision's.
    """
    if model.weights is None or is_file_name(model.weights):
        return ""
    options = [
        f"--data.{name} {str(value).replace(' ', '')}"
        for name, value in torchvision_nets.preprocessing(model.name, model.weights).items()
        if getattr(data, name) != value
    ]
    if not options:
        return ""
    return f"the weights {model.weights} were trained with {' '.join(options)}"
