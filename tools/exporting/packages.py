"""The packages of the extra ``export``, imported where they are used."""

import importlib
from typing import Any

from pipeline.errors import UserError

_REMEDY = 'pip install -e ".[export]"'


def optional_package(name: str, use: str) -> Any:
    """A package, or a module of one.

    Args:
        name: its name, such as onnx or onnx.compose.
        use: what needs it, for the message.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        missing = error.name or name
        raise UserError(f"{use} needs the package {missing}: {_REMEDY}") from None
