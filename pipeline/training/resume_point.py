"""The checkpoint that a run resumes from; damaged ones are set aside.

In: a run's checkpoints and the option ``--resume``. Out: a checkpoint that was read completely.
"""

from dataclasses import dataclass
from pathlib import Path

from pipeline.config import RESUME_WORDS
from pipeline.config.text import did_you_mean_file
from pipeline.errors import UserError, first_few, warn
from pipeline.runtime.distributed import restarted
from pipeline.runtime.files import report_unwritable
from pipeline.training.checkpoint import Checkpoints, CheckpointState, DamagedCheckpoint, load

SUFFIX = ".damaged"  # of the name of a checkpoint that was set aside


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
            a checkpoint cannot be read, or all of several are damaged.
    """
    numbered = checkpoints.all()
    if not (numbered and restarted()):
        if resume not in RESUME_WORDS:
            if not Path(resume).is_file():
                hint = did_you_mean_file(Path(resume), names=RESUME_WORDS)
                raise UserError(
                    f"resume: no file {resume}; use auto, never or a checkpoint's path{hint}"
                )
            return ResumePoint(Path(resume), load(Path(resume)))
        if numbered and resume == "never":
            raise UserError(
                f"resume is never, but {checkpoints.folder} holds checkpoints; give another "
                "--output, or resume with --resume auto"
            )
    return _newest_undamaged(checkpoints, set_aside) if numbered else None


def _newest_undamaged(checkpoints: Checkpoints, set_aside: bool) -> ResumePoint | None:
    """The newest checkpoint that is not damaged. If no numbered one is left, it is best.pt."""
    paths = checkpoints.all()[::-1]
    if checkpoints.best_path.exists():
        paths.append(checkpoints.best_path)
    damaged: list[DamagedCheckpoint] = []
    point = None
    for path in paths:
        try:
            point = ResumePoint(path, load(path))
            break
        except DamagedCheckpoint as error:
            damaged.append(error)
    if point is None and len(damaged) > 1:
        names = first_few([error.path.name for error in damaged])
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
