"""Folders of evaluations: where they are below other folders, and their shortest names.

In: folders of the command line. Out: `EvaluationFolder`s, with the shortest names that distinguish
them.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from pipeline.errors import UserError

# What tools/export.py writes: the net, and the folder of its evaluations.
EXPORT_FILES = ("config.json", "model.safetensors")
EXPORTED_EVALUATIONS = "evaluations"
# Folders inside of a run that contain no other run.
_PARTS_OF_RUNS = {"results", "tensorboard", "checkpoints", "code", "jobs"}


@dataclass(frozen=True)
class EvaluationFolder:
    """An evaluation that pipeline/evaluate.py wrote, merged or not, or that of an export."""

    folder: Path  # contains summary.json
    export: Path | None = None  # the export whose evaluation this is


def evaluation_folder(folder: Path, files: Iterable[str]) -> EvaluationFolder | None:
    """The evaluation in a folder; None if it contains no files of an evaluation or a fine-tuning.

    Args:
        folder: the folder.
        files: names of the files and folders in it.
    """
    is_merged = not {"summary.json", "samples.parquet"}.isdisjoint(files)
    if not is_merged and not any((folder / "results").glob("*/manifest.json")):
        return None
    evaluations, export = folder.parent, folder.parent.parent
    is_export = evaluations.name == EXPORTED_EVALUATIONS and all(
        (export / name).is_file() for name in EXPORT_FILES
    )
    return EvaluationFolder(folder, export if is_export else None)


def find(roots: Sequence[Path], on_error: Callable[[OSError], None]) -> list[EvaluationFolder]:
    """All evaluations and fine-tunings at any depth below folders, each once, sorted by path.

    Links to folders are not followed, except for ``roots`` themselves.

    Args:
        roots: the folders.
        on_error: called with the error of a folder that cannot be listed.

    Raises:
        UserError: a root is no folder.
    """
    for root in roots:
        if not root.is_dir():
            raise UserError(f"no folder {root}; give folders that contain evaluations")
    folders = (evaluation for root in roots for evaluation in _below(root.resolve(), on_error))
    unique = {evaluation.folder: evaluation for evaluation in folders}
    return [unique[path] for path in sorted(unique)]


def _below(root: Path, on_error: Callable[[OSError], None]) -> Iterator[EvaluationFolder]:
    for path, subfolders, files in os.walk(root, onerror=on_error):
        evaluation = evaluation_folder(Path(path), {*subfolders, *files})
        if evaluation is not None:
            yield evaluation
        parts = _PARTS_OF_RUNS if evaluation is not None else set()
        subfolders[:] = (name for name in subfolders if name not in parts and name[0] != ".")


def shown_folders(folders: Sequence[EvaluationFolder]) -> list[Path]:
    """The folders by which evaluations are named: that of an export, if it has one of them only."""
    exports = Counter(evaluation.export for evaluation in folders)
    return [
        e.export if e.export is not None and exports[e.export] == 1 else e.folder for e in folders
    ]


def names(folders: Sequence[EvaluationFolder]) -> list[str]:
    """The shortest paths that distinguish evaluations.

    The folders that all paths begin with or end with are left out. The name of an export is that of
    its folder, if no other row has this name.
    """
    shown = shown_folders(folders)
    shortened = _without_common_parts([path.parts for path in shown])
    export_names = {
        row: path.name
        for row, (path, evaluation) in enumerate(zip(shown, folders, strict=True))
        if path == evaluation.export
    }
    result = list(shortened)
    for row, name in export_names.items():
        others = {path for other, path in enumerate(shortened) if other != row}
        others |= {other_name for other, other_name in export_names.items() if other != row}
        if name not in others:
            result[row] = name
    return result


def _without_common_parts(paths: Sequence[tuple[str, ...]]) -> list[str]:
    if len(paths) == 1:
        return [paths[0][-1]]
    start = _num_common(paths)
    rest = [path[start:] for path in paths]
    end = _num_common([path[::-1] for path in rest])
    # A folder that contains the others has no parts left: it keeps the last common one.
    return ["/".join(path[: len(path) - end]) or paths[0][start - 1] for path in rest]


def _num_common(paths: Sequence[tuple[str, ...]]) -> int:
    """Number of parts that all paths begin with."""
    return sum(1 for _ in takewhile(lambda parts: len({*parts}) == 1, zip(*paths, strict=False)))
