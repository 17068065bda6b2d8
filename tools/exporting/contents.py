"""The files that an export consists of, by their hashes in its config.json.

An earlier export is replaced only if nothing in it would be lost.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from exporting.net_files import EXPORT_KEY, NET_CONFIG_FILE
from pipeline.errors import UserError, first_few

_FILES = "files"


def files_of(folder: Path) -> list[Path]:
    """All files in a folder, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def hashes_of(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file but config.json, by path."""
    names = {path.relative_to(folder).as_posix(): path for path in files_of(folder)}
    names.pop(NET_CONFIG_FILE, None)
    return {name: _sha256(path) for name, path in names.items()}


def with_files(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The values of config.json with the hashes of the other files in a folder."""
    return {**config, EXPORT_KEY: {**config[EXPORT_KEY], _FILES: hashes_of(folder)}}


def check_replaceable(folder: Path) -> None:
    """Refuse to replace a folder that is no export, or has files that an export did not write.

    Raises:
        UserError: names the files.
    """
    try:
        written = json.loads((folder / NET_CONFIG_FILE).read_text())[EXPORT_KEY][_FILES]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"--out: {folder} exists and is no export; give another folder") from None
    hashes = hashes_of(folder)
    own = sorted(name for name, value in hashes.items() if written.get(name) != value)
    if own:
        raise UserError(
            f"--replace would delete what is new or edited in {folder}: {first_few(own)}; move it "
            "away, or give another --out"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
