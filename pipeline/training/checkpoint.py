"""Checkpoints: atomic files that hold all that a run needs to go on exactly.

The order of images, their crops and the random state of a step are functions of the seed and the
step, so a checkpoint needs no generator's state: the step says it all. Files hold tensors and
plain values only, and are read with ``weights_only=True``.
"""

import os
from pathlib import Path
from typing import Any

import torch

from pipeline.config import CheckpointConfig, parse
from pipeline.data.classes import Classes, difference
from pipeline.errors import UserError
from pipeline.runtime import torch_file
from pipeline.runtime.distributed import restarted
from pipeline.runtime.files import atomic_write, report_unwritable
from pipeline.runtime.json_checks import LIST, NUMBER, OBJECT, TEXT, WHOLE_NUMBER, Kinds, lacking

VERSION = 1
State = dict[str, Any]
_KINDS: Kinds = {
    **dict.fromkeys(("model", "optimizer", "scaler", "config"), OBJECT),
    "step": WHOLE_NUMBER,
    "history": LIST,
    "seconds": NUMBER,
    "index": TEXT,
}

# Options that may change between a checkpoint and the run that goes on from it: they change
# neither the weights that come out nor what is measured. Indices are compared by content.
FREE = (
    *("output", "resume", "dry_run", "log", "checkpoint", "runtime"),
    *(
        "train.gradient_accumulation_steps",
        "regularizer.max_images",
        "model.weights",
        "model.new_head",
    ),
    *("data.train", "data.val", "data.root", "data.num_threads", "data.prefetch", "data.on_error"),
    *("data.half_input", "data.check_classes", "evaluation.batch_size"),
)


class Checkpoints:
    """The checkpoints of one run: the newest few, and the best."""

    def __init__(self, folder: Path, config: CheckpointConfig) -> None:
        self.folder = folder
        self.config = config

    @property
    def best_path(self) -> Path:
        """Where the best is kept."""
        return self.folder / "best.pt"

    def all(self) -> list[Path]:
        """The numbered checkpoints, oldest first."""
        return sorted(self.folder.glob("step-*.pt"))

    def save(self, step: int, state: State, best: bool = False) -> Path:
        """Write a checkpoint, then drop what is older than the newest few.

        Raises:
            UserError: it cannot be written; the checkpoints before it stay.
        """
        path = self._path(step)
        state = {"version": VERSION, **state}
        if best:
            # First, since the history in step-N.pt says that best.pt is of this step: a run killed
            # between the two resumes from an earlier checkpoint, and writes both again.
            write(self.best_path, state)
        write(path, state)
        for old in self.all()[: -self.config.keep_last]:
            old.unlink(missing_ok=True)
        return path

    def restore_best(self, best_step: int, step: int) -> str:
        """Write best.pt again where it is missing or of another step than the history says.

        Args:
            best_step: of the best evaluation in the history.
            step: of the checkpoint that the run resumes from; a best.pt of a later step stays,
                since the run comes to that step again.

        Returns:
            A warning if the checkpoint of that step is not there any more; empty if all is well.

        Raises:
            UserError: best.pt cannot be written.
        """
        present = _step_of(self.best_path)
        if present is not None and (present == best_step or present > step):
            return ""
        source = self._path(best_step)
        if _step_of(source) == best_step:
            write(self.best_path, torch.load(source, map_location="cpu", weights_only=True))
            return ""
        state = "is missing or damaged" if present is None else f"is of step {present}"
        return (
            f"{self.best_path} {state}, but the best {self.config.best} so far is that of "
            f"step {best_step}, whose checkpoint is no longer kept: best.pt cannot be restored; "
            "the next better evaluation writes it again"
        )

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:09d}.pt"

    def find(self, resume: str) -> Path | None:
        """The checkpoint to go on from, by the option ``resume``; the newest if this is a restart.

        Raises:
            UserError: ``never`` and there are checkpoints, or a path that does not exist.
        """
        newest = self.all()[-1:]
        if newest and restarted():
            return newest[0]
        if resume not in ("auto", "never"):
            if not Path(resume).is_file():
                raise UserError(f"resume: no file {resume}; it is auto, never or a checkpoint")
            return Path(resume)
        if newest and resume == "never":
            raise UserError(
                f"resume is never, but {self.folder} holds checkpoints; give another --output, "
                "or resume with --resume auto"
            )
        return newest[0] if newest else None


def _step_of(path: Path) -> int | None:
    """The step of a checkpoint; None where there is none, or a damaged one."""
    state = torch_file.peek(path)
    return state.get("step") if isinstance(state, dict) else None


def write(path: Path, state: State) -> None:
    """Write under a temporary name, flush to disk, rename; the old file stays until then.

    Raises:
        UserError: the file cannot be written.
    """
    remedy = (
        "checkpoints written before are kept: free some space, then rerun the same command to "
        "resume"
    )
    with report_unwritable(path, remedy):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as partial, partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())


def damaged(path: Path, problem: str) -> UserError:
    """The error for a checkpoint with values that cannot be right; ``problem`` is a verb phrase."""
    return _unreadable(path, f"is damaged: it {problem}")


def _unreadable(path: Path, problem: str) -> UserError:
    return UserError(
        f"the checkpoint {path} {problem}; remove it to resume from the one before, or name one "
        "with --resume PATH"
    )


def read(path: Path, config: Any, fingerprint: str, classes: Classes | None = None) -> State:
    """Read a checkpoint and hold it against the configuration of this run.

    Args:
        path: the file.
        config: of this run.
        fingerprint: of this run's training index and mean image.
        classes: of this run's training index; checkpoints from before they were recorded have none.

    Raises:
        UserError: it is cut short, of another version, or of a run with other options.
    """
    try:
        state = torch_file.load(path)
    except torch_file.UnreadableFile as error:
        raise _unreadable(path, str(error)) from None
    if not isinstance(state, dict) or state.get("version") != VERSION:
        raise UserError(f"{path} is no checkpoint of this program (version {VERSION})")
    problem = lacking(state, _KINDS) or lacking(state["config"], {"data": OBJECT})
    if problem:
        raise damaged(path, problem)
    free = FREE
    if isinstance(state["config"]["data"].get("mean"), str) and isinstance(config.data.mean, str):
        free = (*FREE, "data.mean")  # where the image lies; what it is, is in the fingerprint
    changed = parse.stored_differences(state["config"], config, free)
    if state["index"] != fingerprint:
        changed.append("data.train, data.mean: other images, labels or mean image than before")
    recorded = Classes.from_dict(state.get("classes"))
    if recorded is not None and classes is not None and difference(classes, recorded):
        changed.append(f"data.train: other classes: {difference(classes, recorded)}")
    if changed:
        raise UserError(
            f"the checkpoint {path} is of a run with other options ({'; '.join(changed)}); "
            "set them back to go on, or give another --output to begin anew"
        )
    return state
