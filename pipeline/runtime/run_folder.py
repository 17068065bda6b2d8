"""The output folder of a run: its kind, its lock, and temporary files of killed runs."""

import tempfile
from pathlib import Path
from typing import Literal

from pipeline.config import RunConfig
from pipeline.errors import UserError, first_line
from pipeline.runtime import files, lock
from pipeline.runtime.distributed import DistributedContext

# A file or folder that only this kind of run writes.
_MARKERS = {"training": "checkpoints", "evaluation": "results", "adversarial": "manifest.json"}

Kind = Literal["training", "evaluation", "adversarial"]


def check_folder(config: RunConfig, kind: Kind) -> Path:
    """The output folder, which need not exist yet.

    Raises:
        UserError: it belongs to another kind of run, or cannot be read.
    """
    folder = config.folder
    try:
        others = [k for k, marker in _MARKERS.items() if k != kind and (folder / marker).exists()]
    except OSError as error:
        raise UserError(_unusable(folder, error)) from None
    if others:
        raise UserError(
            f"output: {folder} holds another kind of run ({others[0]}); give another --output"
        )
    return folder


def open_folder(
    config: RunConfig, ranks: DistributedContext, kind: Kind, exclusive: bool = False
) -> Path:
    """Create the output folder, check that it can be written, and remove abandoned files.

    Args:
        config: the options of the run; ``output`` is the folder.
        ranks: all ranks must call this; rank 0 does the work.
        kind: the kind of this run.
        exclusive: keep other runs out of the folder until this one ends.

    Raises:
        UserError: it cannot be written, or belongs to another kind of run or to a running one.
    """
    folder = check_folder(config, kind)
    if ranks.is_main:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):  # a unique name: other shards do the same
                pass
        except (OSError, ValueError) as error:
            raise UserError(_unusable(folder, error)) from None
        if exclusive:
            lock.lock_folder(folder)
        shards = folder.glob("results/*")
        for part in (folder, folder / "checkpoints", *shards, *folder.glob("results/*/examples")):
            files.remove_abandoned(part)
    ranks.barrier()
    return folder


def _unusable(folder: Path, error: OSError | ValueError) -> str:
    name = str(folder) if len(str(folder)) < 100 else f"{str(folder)[:60]}..."
    reason = getattr(error, "strerror", None) or first_line(error)
    return f"output: {name} cannot be written ({reason}); give another --output"
