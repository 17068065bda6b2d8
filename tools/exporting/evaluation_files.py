"""The evaluations in an export: evaluations/NAME/, with the files of an evaluation's folder.

Photos are left out, since the licence of a data set rarely lets them be published; so is every
folder in the options, which would show the paths of the machine.
"""

import shutil
from pathlib import Path, PurePath
from typing import Any

import yaml

from exporting.net_files import MEAN
from exporting.source import RUN_OPTIONS_FILE
from pipeline.evaluation import curves
from pipeline.reports.evaluation_folders import EXPORTED_EVALUATIONS
from pipeline.reports.runs import Run
from pipeline.runtime import config_file
from pipeline.runtime.files import atomic_write

CURVE = "curve.png"
_COPIED = ("summary.json", "samples.parquet", "classes.csv", *curves.FILES.values())
# Options that name files of other folders, and those of a run on one machine.
_PATHS = (("data", "train"), ("data", "val"), ("model", "weights"))
_DROPPED = (("output",), ("resume",), ("shard",), ("data", "root"))


def write_evaluations(evaluations: dict[str, Run], folder: Path) -> None:
    """Write the files of each evaluation, and the figure of its curve.

    Args:
        evaluations: by the name of the folder.
        folder: the export.
    """
    for name, run in evaluations.items():
        target = folder / EXPORTED_EVALUATIONS / name
        target.mkdir(parents=True)
        for file in _COPIED:
            if (run.folder / file).is_file():
                shutil.copyfile(run.folder / file, target / file)
        write_options(run.folder / RUN_OPTIONS_FILE, target / RUN_OPTIONS_FILE)
        with atomic_write(target / CURVE) as partial:
            curves.draw(run.samples, run.protocol).savefig(partial, format="png", dpi=150)


def write_options(source: Path, target: Path) -> None:
    """Copy a config.yaml; of paths only the last part is kept, and the mean image is that of the
    export."""
    options = config_file.read(source)
    for path in _DROPPED:
        _section(options, path).pop(path[-1], None)
    for path in _PATHS:
        section = _section(options, path)
        if isinstance(value := section.get(path[-1]), str):
            section[path[-1]] = PurePath(value).name
    if isinstance(_section(options, ("data", "mean")).get("mean"), str):
        options["data"]["mean"] = MEAN
    with atomic_write(target) as partial:
        partial.write_text(yaml.safe_dump(options, sort_keys=False))


def _section(options: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    section = options
    for name in path[:-1]:
        section = section.get(name, {})
    return section
