"""The checkpoint that a run resumes from; damaged ones are set aside.

In: a run's checkpoints and the option ``--resume``. Out: a checkpoint that was read completely.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import RESUME_WORDS
from pipeline.config.text import did_you_mean_file
from pipeline.errors import UserError, first_few, warn
from pipeline.runtime.agent import restarted
from pipeline.runtime.files import atomic_write, report_unwritable, writable
from pipeline.training.checkpoint import Checkpoints, CheckpointState, DamagedCheckpoint, load

SUFFIX = ".damaged"  # of the name of a checkpoint that was set aside
LATER_SUFFIX = ".abandoned"  # of a checkpoint later than the one that --resume PATH names
REFERENCE = "reference.pth"  # the weights before fine-tuning, in a run's folder


@dataclass(frozen=True)
class ResumePoint:
    """A checkpoint and its content."""

    path: Path
    state: CheckpointState


def resume_point(checkpoints: Checkpoints, resume: str, set_aside: bool) -> ResumePoint | None:
    """Read the checkpoint to continue from; only rank 0 may call this.

    Args:
        checkpoints: the checkpoints of the run.
        resume: the option: auto, never or a path. After a restart by torchrun or SLURM the newest
            checkpoint is used, whatever the option says.
        set_aside: rename damaged checkpoints.

    Returns:
        None for a new run: there is no checkpoint, or the only one is damaged.

    Raises:
        UserError: ``resume`` is ``never`` and there are checkpoints, or a path that does not exist;
            a checkpoint cannot be read, or all of several are damaged, with those set aside before.
    """
    paths = _newest_first(checkpoints)
    if not (paths and restarted()):
        if resume not in RESUME_WORDS:
            if not Path(resume).is_file():
                hint = did_you_mean_file(Path(resume), names=RESUME_WORDS)
                raise UserError(
                    f"resume: no file {resume}; use auto, never or a checkpoint's path{hint}"
                )
            return ResumePoint(Path(resume), load(Path(resume)))
        if paths and resume == "never":
            raise UserError(
                f"resume is never, but {checkpoints.folder} holds checkpoints; give another "
                "--output, or resume with --resume auto"
            )
    return _newest_undamaged(checkpoints, paths, set_aside)


def continue_from(checkpoints: Checkpoints, path: Path, step: int) -> None:
    """Prepare a run's folder for continuing from the checkpoint that --resume PATH names.

    The run's later checkpoints are renamed: a restart would continue from them, and they would
    count as newer than those that the run writes from now on. The weights before fine-tuning are
    copied from the run of the checkpoint, because this one does not pass their step.

    Args:
        checkpoints: the checkpoints of the run.
        path: the checkpoint to continue from; nothing is done for the newest of the run itself.
        step: its step.

    Raises:
        UserError: a file cannot be renamed or written.
    """
    for later in checkpoints.later_than(step):
        aside = later.with_name(later.name + LATER_SUFFIX)
        with report_unwritable(aside, "the run must be able to rename its later checkpoints"):
            later.replace(aside)
        warn(f"--resume {path} goes back to step {step}: {later} is now {aside.name}")
    reference = checkpoints.folder.parent / REFERENCE
    source = path.absolute().parent.parent / REFERENCE
    if not reference.exists() and source.exists():
        with writable(reference), atomic_write(reference) as partial:
            shutil.copyfile(source, partial)


def _newest_first(checkpoints: Checkpoints) -> list[Path]:
    """The checkpoints from which a run may continue: the numbered ones, then best.pt.

    best.pt remains when an earlier start has set all numbered ones aside. Without those it is no
    checkpoint to continue from: the first save was interrupted after best.pt, and is repeated.
    """
    paths = checkpoints.all()[::-1]
    if (paths or _set_aside(checkpoints)) and checkpoints.best_path.exists():
        paths.append(checkpoints.best_path)
    return paths


def _set_aside(checkpoints: Checkpoints) -> list[Path]:
    """The damaged checkpoints that earlier starts have renamed."""
    return sorted(checkpoints.folder.glob(f"*{SUFFIX}"))


def _newest_undamaged(
    checkpoints: Checkpoints, paths: list[Path], set_aside: bool
) -> ResumePoint | None:
    """The first that is not damaged; None without paths, or if the only checkpoint is damaged."""
    damaged: list[DamagedCheckpoint] = []
    point = None
    for path in paths:
        try:
            point = ResumePoint(path, load(path))
            break
        except DamagedCheckpoint as error:
            damaged.append(error)
    all_damaged = [*(error.path for error in damaged), *_set_aside(checkpoints)]
    if point is None and damaged and len(all_damaged) > 1:
        names = first_few([path.name for path in all_damaged])
        raise UserError(
            f"all checkpoints in {checkpoints.folder} are damaged ({names}): {damaged[0]}"
        )
    for error in damaged:
        _warn_of(error, point, set_aside)
    return point


def _warn_of(error: DamagedCheckpoint, point: ResumePoint | None, set_aside: bool) -> None:
    """Name a damaged checkpoint and rename it, so that later starts do not read it again."""
    path, action = error.path, "it is not used"
    if set_aside:
        aside = path.with_name(path.name + SUFFIX)
        with report_unwritable(aside, "the run must be able to rename the damaged checkpoint"):
            path.replace(aside)
        action = f"it is now {aside.name}"
    source = "the run starts anew" if point is None else f"{point.path.name} is used instead"
    warn(f"the checkpoint {path} {error.problem}; {action}, and {source}")
