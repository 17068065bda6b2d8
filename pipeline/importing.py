"""Things of the user's own, by package.module:name."""

import importlib
import os
import sys
from typing import Any

from pipeline.errors import UserError


def import_callable(name: str, option: str) -> Any:
    """What ``package.module:name`` names.

    Raises:
        UserError: it cannot be imported, or is not callable; names the option.
    """
    module_name, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:  # as ``python -m`` has it: one's own file in the folder
        sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"{option}: {name} cannot be imported ({error}); it is package.module:name, "
            "with the package installed, in this folder or on PYTHONPATH"
        ) from None
    if not callable(found):
        raise UserError(f"{option}: {name} is not callable")
    return found
