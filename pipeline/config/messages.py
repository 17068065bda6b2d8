"""Lines that every entry point prints: at the start, after a signal, and what to do next.

Imports nothing heavy, so that the first line is printed before torch and DALI are loaded.
"""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from pipeline.config import FinetuneConfig, RunConfig, parse
from pipeline.errors import is_first_process


def check_options(cls: type[RunConfig], description: str | None, output_suffix: str = "") -> None:
    """Refuse wrong options, and print the first line of a run, before the slow imports.

    The arguments are those of `pipeline.config.parse.parse`.
    """
    config = parse.parse(cls, description, output_suffix=output_suffix)
    if is_first_process():
        data = config.data
        names = f"train {data.train}, val {data.val}" if cls is FinetuneConfig else data.val
        size = os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", "1"))
        print(
            f"starting: {config.model.name} on {names}, {size} rank(s), output {config.output}; "
            "loading torch and DALI",
            flush=True,
        )


def no_lower_bound(reason: str) -> str:
    """A warning that distances have no lower bound; empty if ``reason`` is."""
    return reason and f"evaluation.lower_bound has no effect: {reason}"


def interrupted(where: str = "") -> str:
    """The line after a signal; ``where`` is empty or as `` after step 24``."""
    line = f"interrupted{where}; everything is saved: rerun the same command to resume"
    if "TORCHELASTIC_RUN_ID" in os.environ:
        line += " (torchrun's own report follows, and torchrun exits with code 1)"
    return line


def after_training(config: FinetuneConfig, size: int) -> str:
    """The commands that evaluate the fine-tuned net and show the run; one line each."""
    folder = config.folder
    arguments = [_script("pipeline/evaluate.py"), "--config", folder / "config.yaml"]
    arguments += ["--model.weights", folder / "weights.pth", "--output", f"{folder}-evaluation"]
    if config.regularizer.gradient == "one_step" and config.evaluation.attack.method == "deepfool":
        # DeepFool's path grows more than the distance: docs/reproduction.md.
        arguments += ["--evaluation.attack.method", "deepfool+superdeepfool"]
    launcher = ["torchrun", "--standalone", f"--nproc_per_node={size}"] if size > 1 else ["python"]
    return f"evaluate it: {_quoted([*launcher, *arguments])}\ncurves:      {watch(folder)}"


def watch(folder: Path) -> str:
    """The command that shows the curves of a run."""
    return _quoted(["tensorboard", "--logdir", folder])


def after_evaluation(folder: Path) -> str:
    """The command that makes a table of the results."""
    return f"as a table: {_quoted(['python', _script('tools/report.py'), 'table', folder])}"


def _script(name: str) -> str:
    """The path of a script of this project, relative to the working folder if it is below it."""
    path = os.path.relpath(Path(__file__).parents[2] / name)
    return str(Path(path).absolute().resolve()) if path.startswith("..") else path


def _quoted(arguments: Sequence[object]) -> str:
    return shlex.join(map(str, arguments))
