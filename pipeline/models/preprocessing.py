"""The preprocessing that weights were trained with."""

from pipeline.config import DataConfig, ModelConfig
from pipeline.models import timm_nets, torchvision_nets
from pipeline.models.weights import is_file_name


def preprocessing_advice(model: ModelConfig, data: DataConfig) -> str:
    """The data options that published weights were trained with, where they differ.

    Empty if none differs or the weights are not published by torchvision or timm.
    """
    if model.weights is None or is_file_name(model.weights):
        return ""
    if timm_nets.is_timm(model.name):
        published = timm_nets.preprocessing(model.name)
    else:
        published = torchvision_nets.preprocessing(model)
    options = [
        f"--data.{name} {str(value).replace(' ', '')}"
        for name, value in published.data_options().items()
        if getattr(data, name) != value
    ]
    if not options:
        return ""
    return f"the weights {model.weights} were trained with {' '.join(options)}"
