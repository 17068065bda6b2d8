"""The smallest run of pipeline/finetune.py, in this process."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.training.trainer import Trainer
from tests.helpers.in_process import in_process
from tests.unit.mistakes.case import FINETUNE, CommandResult

TINY = (
    *("--model.name", "tests.helpers.nets:dropout_mlp"),
    *("--train.batch_size", 1000, "--train.pretrain_epochs", 1, "--train.epochs", 2),
    *("--checkpoint.every_steps", 100, "--log.every_steps", 4, "--log.panel_images", 0),
    *("--evaluation.num_images", 100, "--evaluation.every_epochs", 1),
)  # 6 steps an epoch, 18 in all; evaluations at 6, 12 and 18


def finetune(folder: Path, *options: object) -> CommandResult:
    done = in_process(FINETUNE, *TINY, "--output", folder, *options)
    return CommandResult(done.returncode, done.stdout, done.stderr)


def kill_at_step(patch: pytest.MonkeyPatch, number: int) -> None:
    """End a run after ``number`` steps by an exception that is not caught, so that nothing more is
    saved."""
    train_step = Trainer._train_step

    def step(self: Trainer, batches: Any) -> Any:
        if self.step == number:
            raise KeyboardInterrupt
        return train_step(self, batches)

    patch.setattr(Trainer, "_train_step", step)
