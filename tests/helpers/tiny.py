"""The smallest run of pipeline/finetune.py, in this process."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.training.trainer import Trainer
from tests.helpers.in_process import FINETUNE, CommandResult, in_process

TINY = (
    *("--model.name", "tests.helpers.nets:dropout_mlp"),
    *("--train.batch_size", 1000, "--train.pretrain_epochs", 1, "--train.epochs", 2),
    *("--checkpoint.every_steps", 100, "--log.every_steps", 4, "--log.panel_images", 0),
    *("--evaluation.num_images", 100, "--evaluation.every_epochs", 1),
)  # 6 steps an epoch, 18 in all; evaluations at 6, 12 and 18
# Values in metrics.jsonl that depend on the clock and on the machine.
CLOCK = ("time", "train/images_per_second", "train/data_wait", "train/peak_memory_mib")


def finetune(folder: Path, *options: object) -> CommandResult:
    done = in_process(FINETUNE, *TINY, "--output", folder, *options)
    return CommandResult(done.returncode, done.stdout, done.stderr)


def finished(folder: Path, *options: object) -> CommandResult:
    """As `finetune`, without an error."""
    ended = finetune(folder, *options)
    assert ended.code == 0, ended.stderr
    return ended


def metric_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl without what depends on the clock."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in CLOCK} for line in lines]


def kill_at_step(patch: pytest.MonkeyPatch, number: int) -> None:
    """End a run after ``number`` steps by what nothing catches; nothing more is saved."""
    train_step = Trainer._train_step

    def step(self: Trainer, batches: Any) -> Any:
        if self.step == number:
            raise KeyboardInterrupt
        return train_step(self, batches)

    patch.setattr(Trainer, "_train_step", step)
