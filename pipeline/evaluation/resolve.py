"""Options that stand for values which other files hold."""

from typing import TypeVar

from pipeline.config import RunConfig
from pipeline.evaluation.reference import resolve_reference
from pipeline.models.preprocessing import resolve_preprocessing

ConfigT = TypeVar("ConfigT", bound=RunConfig)


def resolve(config: ConfigT) -> ConfigT:
    """The configuration with the values of ``evaluation.fgs.reference`` FOLDER and of
    ``data.preprocessing`` auto. A stored configuration must have them.

    Raises:
        UserError: the folder has no such value, or one with another meaning; or the preprocessing
            of the net is not known.
    """
    return resolve_reference(resolve_preprocessing(config))
