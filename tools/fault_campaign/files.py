"""The output folder of a run: its progress, its temporary files, damage to its checkpoints."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from pipeline.runtime.files import TEMPORARY

_PROGRESS = "progress.json"


def num_rows(folder: Path) -> int:
    """Rows of results so far: lines of metrics.jsonl and of the ranks' files of an evaluation."""
    total = 0
    for path in (folder / "metrics.jsonl", *folder.glob("results/*/rank*.jsonl")):
        with suppress(OSError):
            total += path.read_bytes().count(b"\n")
    return total


def last_step(folder: Path) -> int:
    """The last optimiser step in metrics.jsonl; 0 if there is none."""
    with suppress(OSError, ValueError, KeyError, IndexError):
        lines = (folder / "metrics.jsonl").read_bytes().rpartition(b"\n")[0].splitlines()
        return json.loads(lines[-1])["step"]
    return 0


def written_files(folder: Path) -> list[str]:
    """Names of the files that are being written: those with a temporary name, but for the progress,
    which is written every two seconds."""
    names = []
    for part in (folder, folder / "checkpoints", *folder.glob("results/*")):
        with suppress(OSError), os.scandir(part) as entries:
            names += [m["name"] for e in entries if (m := TEMPORARY.fullmatch(e.name))]
    return [name for name in names if name != _PROGRESS]


def progress(folder: Path) -> str:
    """What the run was doing, and after how many steps or images; empty before it wrote that."""
    for path in (folder / _PROGRESS, *folder.glob(f"results/*/{_PROGRESS}")):
        with suppress(OSError, ValueError, KeyError):
            doing: str = json.loads(path.read_text())["doing"]
            if (folder / "metrics.jsonl").exists():
                return f"{doing}, step {last_step(folder)}"
            return f"{doing}, image {num_rows(folder)}"
    return ""


def numbered_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints with a step in their name, oldest first."""
    return sorted((folder / "checkpoints").glob("step-*.pt"))


def cut_newest_checkpoint(folder: Path, draw: float) -> str:
    """Cut the newest checkpoint short at a random byte."""
    return _damage(folder, lambda path: _cut(path, draw))


def flip_bit_of_newest_checkpoint(folder: Path, draw: float) -> str:
    """Change one random bit of the newest checkpoint."""
    return _damage(folder, lambda path: _flip(path, draw))


def _damage(folder: Path, change: Callable[[Path], str]) -> str:
    paths = numbered_checkpoints(folder)
    return f"{paths[-1].name} {change(paths[-1])}" if paths else "no checkpoint yet"


def _cut(path: Path, draw: float) -> str:
    size = path.stat().st_size
    length = int(size * draw)
    os.truncate(path, length)
    return f"cut to {length} of {size} bytes"


def _flip(path: Path, draw: float) -> str:
    data = bytearray(path.read_bytes())
    byte, bit = divmod(int(8 * len(data) * draw), 8)
    data[byte] ^= 1 << bit
    path.write_bytes(data)
    return f"bit {bit} of byte {byte} changed"


def all_files(folder: Path) -> Iterator[str]:
    """Paths of all files below a folder, relative to it."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield str(path.relative_to(folder))
