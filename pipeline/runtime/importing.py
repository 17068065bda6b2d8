"""The user's code: imported as package.module:name; its exceptions are reported in one line."""

import importlib
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.config.text import did_you_mean
from pipeline.errors import UserError, first_line

_ROOT = Path(__file__).resolve().parents[2]
_SCRIPT_FOLDERS = {_ROOT / name for name in ("pipeline", "launchers", "tools")}


def import_callable(name: str, option: str) -> Any:
    """Import ``package.module:name``; the working folder is searched first.

    Raises:
        UserError: it cannot be imported, or is not callable; names the option.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise UserError(f"{option} must be package.module:name, got {name!r}")
    _search_working_folder_first()
    with report_exceptions(name, option):
        try:
            module = importlib.import_module(module_name)
        except ImportError as error:
            raise UserError(
                f"{option}: {name} cannot be imported ({first_line(error)}); it is "
                "package.module:name, with the package installed, in this folder or on PYTHONPATH"
            ) from None
    if not hasattr(module, attribute):
        file = getattr(module, "__file__", None) or "built into Python"
        callables = [other for other, member in vars(module).items() if callable(member)]
        raise UserError(
            f"{option}: {name} cannot be imported: the module {module_name} ({file}) has no "
            f"{attribute}{did_you_mean(attribute, callables, prefix=f'{module_name}:')}"
        )
    value = getattr(module, attribute)
    if not callable(value):
        raise UserError(f"{option}: {name} is not callable")
    return value


@contextmanager
def report_exceptions(name: str, option: str) -> Iterator[None]:
    """Report an exception of the user's code as one line.

    Raises:
        UserError: names the option, the exception, and the line of the user's file.
    """
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{option}: {name} failed: {describe_exception(error)}") from None


def describe_exception(error: BaseException) -> str:
    """Type and message of an exception, and the line of the user's file where it was raised."""
    text = type(error).__name__
    if str(error):
        text += f": {first_line(error)}"
    libraries = (sys.prefix, sys.base_prefix, str(_ROOT / "pipeline"), "<")
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith(libraries):
            return f"{text} ({frame.filename}, line {frame.lineno})"
    return text


def _search_working_folder_first() -> None:
    """Put the working folder first on sys.path, as ``python -m`` does, and the script's folder
    last: Python puts that one first, and its modules have common names (models, data, config)."""
    working_folder = os.getcwd()
    scripts = [entry for entry in sys.path if Path(entry).resolve() in _SCRIPT_FOLDERS]
    others = [entry for entry in sys.path if entry not in (*scripts, working_folder, "")]
    sys.path[:] = [working_folder, *others, *scripts]
