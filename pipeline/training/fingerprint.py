"""What a resumed run must not change, besides its options.

In: the options, the training images, the net. Out: a text that checkpoints store.
"""

from torch import nn

from pipeline.config import FinetuneConfig
from pipeline.data import mean_image
from pipeline.data.index import Index
from pipeline.models.weights_hash import weights_hash
from pipeline.training.checkpoint import TARGETS_BY


def fingerprint(config: FinetuneConfig, train_index: Index, net: nn.Module) -> str:
    """Identifies the training images, the mean image, and the weights that predict the targets.

    Args:
        config: the options of the run.
        train_index: the index of the training images.
        net: the net that the run starts from.
    """
    text = train_index.fingerprint
    if isinstance(config.data.mean, str):
        text += f", mean {mean_image.identity(config.data)}"
    if config.objective.targets == "reference":
        text += f"{TARGETS_BY}{weights_hash(net)}"
    return text
