"""The callables that submitted jobs run: an entry point, the merging of shards, a report.

submitit pickles an instance by the name of its class and calls it in every task of the job.
This module does not import torch, so that the environment variables are set before torch reads
them.
"""

import importlib
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import submitit

from pipeline.config import messages
from pipeline.errors import STOPPED_EXIT_CODE, UserError, exit_on_user_error

# Seconds that the other ranks wait to be ended by SLURM after rank 0 has requeued the job.
_REQUEUE_WAIT = 120


@dataclass(frozen=True)
class Task:
    """An entry point with its options."""

    module: str  # pipeline.finetune or pipeline.evaluate
    argv: tuple[str, ...]
    folder: str  # where it was submitted; relative paths and the user's modules are found there

    def __call__(self) -> None:
        """Run the entry point as torchrun would; requeue the job if it was preempted or timed out.

        Raises:
            SystemExit: with the entry point's exit code, if it is not 0.
        """
        requeue = signal.getsignal(signal.SIGUSR2)  # submitit's handler, which the run replaces
        submitit.helpers.TorchDistributedEnvironment().export(
            set_cuda_visible_devices=False, overwrite=True
        )
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # torchrun's default
        os.environ.update(messages.NO_NEXT_STEPS)  # the launcher has printed them
        os.chdir(self.folder)
        sys.argv = [self.module, *self.argv]
        try:
            importlib.import_module(self.module).main()
        except SystemExit as error:
            if error.code in (None, 0):
                return
            if error.code == STOPPED_EXIT_CODE and _should_be_requeued() and callable(requeue):
                requeue(signal.SIGUSR2, None)  # on rank 0 this does not return
                time.sleep(_REQUEUE_WAIT)
            raise

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """The task that submitit requeues: the same one, which resumes from its checkpoint."""
        return submitit.helpers.DelayedSubmission(self)


@dataclass(frozen=True)
class Merge:
    """Merges the shards of an evaluation; runs after their jobs have ended."""

    folder: str

    def __call__(self) -> None:
        """Write the summary and print it.

        Raises:
            SystemExit: images are missing; the message names their shards.
        """
        from pipeline.evaluation import merge
        from pipeline.evaluation.summary import format_summary, write_outputs

        folder = Path(self.folder)
        with exit_on_user_error(), merge.merging(folder) as merged:
            if not merged.complete:
                raise UserError(
                    f"{merged.missing_message()}; rerun the same command to evaluate those shards"
                )
            print(format_summary(write_outputs(folder, merged)))


@dataclass(frozen=True)
class Report:
    """Writes the tables and figures of a chain."""

    folder: str

    def __call__(self) -> None:
        """Do what tools/report.py chain does.

        Raises:
            SystemExit: results are missing; the message names them.
        """
        from pipeline.reports import chain_report

        with exit_on_user_error():
            print(chain_report.write(Path(self.folder)))


def _should_be_requeued() -> bool:
    """Whether the run was preempted or is near its time limit: SLURM then sends SIGUSR2.

    scancel sends SIGTERM alone.
    """
    from pipeline.runtime.signals import received_signals

    return signal.SIGUSR2 in received_signals()
