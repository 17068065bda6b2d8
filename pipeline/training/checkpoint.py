"""Checkpoints: files from which a run continues exactly; a kill never leaves a part of one.

The order of images, their crops and the random numbers of a step are functions of the seed and the
step's number, so a checkpoint holds no state of a random generator. Files hold tensors and plain
values only, and are read with ``weights_only=True``.
"""

import os
from pathlib import Path
from typing import Any

import torch

from pipeline.config import CheckpointConfig, FinetuneConfig, parse
from pipeline.data.classes import Classes, difference
from pipeline.errors import UserError
from pipeline.runtime import torch_file
from pipeline.runtime.files import atomic_write, report_unwritable
from pipeline.runtime.json_checks import (
    LIST,
    NUMBER,
    OBJECT,
    TEXT,
    WHOLE_NUMBER,
    Kinds,
    schema_problem,
)

VERSION = 1
CheckpointState = dict[str, Any]
_KINDS: Kinds = {
    "model": OBJECT,
    "optimizer": OBJECT,
    "scaler": OBJECT,
    "config": OBJECT,
    "step": WHOLE_NUMBER,
    "history": LIST,
    "seconds": NUMBER,
    "index": TEXT,
}

# Before the hash of the weights that predict the targets, in a fingerprint.
TARGETS_BY = ", targets by "

# Options that may differ between the run of a checkpoint and the run that resumes from it: they
# affect neither the weights nor what is measured. Indices are compared by their content instead.
CHANGEABLE = (
    "output",
    "resume",
    "dry_run",
    "log",
    "checkpoint",
    "runtime",
    "tracking",
    "train.gradient_accumulation_steps",
    "regularizer.max_images",
    "model.weights",
    "model.new_head",
    "data.train",
    "data.val",
    "data.root",
    "data.num_threads",
    "data.prefetch",
    "data.on_error",
    "data.half_input",
    "data.hw_decoder_load",
    "data.check_classes",
    "evaluation.batch_size",
)


class Checkpoints:
    """The checkpoints of one run: the newest few, and the best."""

    def __init__(self, folder: Path, config: CheckpointConfig) -> None:
        self.folder = folder
        self.config = config

    @property
    def best_path(self) -> Path:
        """Path of the best checkpoint."""
        return self.folder / "best.pt"

    def all(self) -> list[Path]:
        """The numbered checkpoints, oldest first."""
        return sorted(self.folder.glob("step-*.pt"))

    def later_than(self, step: int) -> list[Path]:
        """The numbered checkpoints of later steps, oldest first."""
        return [path for path in self.all() if path > self._path(step)]

    def save(self, step: int, state: CheckpointState, best: bool = False) -> Path:
        """Write a checkpoint, then delete all but the newest ``checkpoint.keep_last``.

        Args:
            step: optimiser steps done.
            state: contents of the file.
            best: write it as best.pt, too.

        Raises:
            UserError: it cannot be written; the earlier checkpoints stay.
        """
        path = self._path(step)
        state = {"version": VERSION, **state}
        if best:
            # best.pt first: the history in step-N.pt says that best.pt is of this step. A run that
            # is killed between the two resumes from an earlier checkpoint, and writes both again.
            write(self.best_path, state)
        write(path, state)
        for old in self.all()[: -self.config.keep_last]:
            if old != path:
                old.unlink(missing_ok=True)
        return path

    def restore_best(self, best_step: int, step: int) -> str:
        """Write best.pt again if it is missing or of another step than the best evaluation.

        Args:
            best_step: step of the best evaluation in the history.
            step: step of the checkpoint that the run resumes from. A best.pt of a later step is
                kept, because the run reaches that step again.

        Returns:
            A warning if the checkpoint of ``best_step`` no longer exists; otherwise empty.

        Raises:
            UserError: best.pt cannot be written.
        """
        present_step = _step_of(self.best_path)
        if present_step is not None and (present_step == best_step or present_step > step):
            return ""
        source = self._path(best_step)
        if _step_of(source) == best_step:
            write(self.best_path, torch.load(source, map_location="cpu", weights_only=True))
            return ""
        problem = "is missing or damaged"
        if present_step is not None:
            problem = f"is of step {present_step}"
        return (
            f"{self.best_path} {problem}, but the best {self.config.best} so far is that of "
            f"step {best_step}, whose checkpoint was deleted: best.pt cannot be restored; it will "
            "be written after the next evaluation that is better"
        )

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:09d}.pt"


def _step_of(path: Path) -> int | None:
    """The step of a checkpoint; None if the file is missing or damaged."""
    state = torch_file.peek(path) if torch_file.is_intact(path) else None
    return state.get("step") if isinstance(state, dict) else None


def write(path: Path, state: CheckpointState) -> None:
    """Write a file under a temporary name, flush it to the disk, then rename it.

    An old file of this name stays until the new one is complete.

    Raises:
        UserError: the file cannot be written.
    """
    remedy = "earlier checkpoints are kept: free some space, then rerun the same command to resume"
    with report_unwritable(path, remedy):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as partial, partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())


class DamagedCheckpoint(UserError):
    """A checkpoint that is cut short, or has invalid values.

    Attributes:
        path: the file.
        problem: the problem, as a phrase that begins with a verb.
    """

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(
            f"the checkpoint {path} {problem}; remove it to resume from the one before it, or "
            "choose another one with --resume PATH"
        )
        self.path, self.problem = path, problem


def damaged(path: Path, problem: str) -> DamagedCheckpoint:
    """The error for a checkpoint with invalid values.

    Args:
        path: the checkpoint.
        problem: the problem, as a phrase that begins with a verb.
    """
    return DamagedCheckpoint(path, f"is damaged: it {problem}")


def load(path: Path) -> CheckpointState:
    """Read a checkpoint and check that it is complete.

    Raises:
        DamagedCheckpoint: it is not.
        UserError: it cannot be read, or is of another version.
    """
    try:
        state = torch_file.load(path)
    except torch_file.DamagedFile as error:
        raise DamagedCheckpoint(path, str(error)) from None
    except torch_file.UnreadableFile as error:
        raise UserError(
            f"the checkpoint {path} {error}; choose another one with --resume PATH"
        ) from None
    if not isinstance(state, dict) or state.get("version") != VERSION:
        raise UserError(f"{path} is no checkpoint of this program (version {VERSION})")
    problem = schema_problem(state, _KINDS) or schema_problem(state["config"], {"data": OBJECT})
    if problem:
        raise damaged(path, problem)
    return state


def check(
    path: Path,
    state: CheckpointState,
    config: FinetuneConfig,
    fingerprint: str,
    classes: Classes | None = None,
    decoder: str | None = None,
) -> None:
    """Check that a checkpoint belongs to a run with the same options.

    Args:
        path: the file, for the message.
        state: its content.
        config: the options of this run.
        fingerprint: fingerprint of this run's training index, mean image and targets.
        classes: classes of this run's training index. They are not checked if the checkpoint is of
            a version that did not store classes.
        decoder: what decodes this run's images, cpu or gpu; None: data.decoder is compared as it
            is written.

    Raises:
        UserError: it is of a run with other options.
    """
    changeable = CHANGEABLE
    if decoder is not None and state.get("decoder") == decoder:
        # The same pixels, whether the option says auto or names the decoder.
        changeable = (*changeable, "data.decoder")
    if isinstance(state["config"]["data"].get("mean"), str) and isinstance(config.data.mean, str):
        # The path of the mean image may change; its content is part of the fingerprint.
        changeable = (*changeable, "data.mean")
    differences = parse.stored_differences(state["config"], config, changeable)
    differences += _differences_of_data(state, fingerprint, classes)
    if differences:
        raise UserError(
            f"the checkpoint {path} is of a run with other options ({'; '.join(differences)}); "
            "set them back to resume, or give another --output to start a new run"
        )


def decoder_warning(path: Path, state: CheckpointState, decoder: str) -> str:
    """A warning if another decoder has decoded the images of a checkpoint's run, or nothing.

    Args:
        path: the checkpoint, for the message.
        state: its content; that of earlier versions has no decoder.
        decoder: what decodes this run's images, cpu or gpu.
    """
    recorded = state.get("decoder")
    if recorded in (None, decoder):
        return ""
    remedy = "; --data.decoder cpu keeps them" if recorded == "cpu" else ""
    return (
        f"the run of {path} decoded its images on the {recorded.upper()}, this one does on the "
        f"{decoder.upper()} (data.decoder auto): from here on the pixels of JPEGs differ a little"
        f"{remedy}"
    )


def _differences_of_data(
    state: CheckpointState, fingerprint: str, classes: Classes | None
) -> list[str]:
    """How this run's training images and classes differ from those of a checkpoint's run."""
    differences = []
    if state["index"] != fingerprint:
        differences.append(_changed_data(state["index"], fingerprint))
    recorded = Classes.from_dict(state.get("classes"))
    if recorded is not None and classes is not None:
        class_difference = difference(classes, recorded)
        if class_difference:
            differences.append(f"data.train: other classes: {class_difference}")
    return differences


def _changed_data(stored: str, fingerprint: str) -> str:
    """Which of the things that fingerprints identify are not those of the checkpoint's run."""
    if stored.partition(TARGETS_BY)[0] != fingerprint.partition(TARGETS_BY)[0]:
        return "data.train, data.mean: other images, labels or mean image than before"
    return "model.weights: the targets would be by other weights than before"
