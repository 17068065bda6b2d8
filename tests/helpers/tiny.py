"""The smallest run of pipeline/finetune.py, in this process."""

from pathlib import Path

from pipeline.runtime import lock
from tests.unit.mistakes.case import FINETUNE, Ended, call

TINY = (
    *("--train.batch_size", 1000, "--train.pretrain_epochs", 1, "--train.epochs", 2),
    *("--checkpoint.every_steps", 100, "--log.every_steps", 4, "--log.panel_images", 0),
    *("--evaluation.num_images", 100, "--evaluation.every_epochs", 1),
)  # 6 steps an epoch, 18 in all; evaluations at 6, 12 and 18


def finetune(folder: Path, *options: object) -> Ended:
    try:
        return call(FINETUNE, *TINY, "--output", folder, *options)
    finally:
        while lock._held:  # as the end of a process would
            lock._held.pop().close()
