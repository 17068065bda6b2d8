"""One task of a submitted run: what a node does.

submitit pickles `Task` by name and calls it on every task of the job. torch is not imported
here, so that the environment is set before torch reads it.
"""

import importlib
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import submitit

from pipeline.errors import STOPPED_EXIT_CODE, UserError, exit_on_user_error

_REQUEUE_WAIT = 120  # seconds that a task waits to be ended after rank 0 has requeued the job


@dataclass(frozen=True)
class Task:
    """An entry point with its options."""

    module: str  # pipeline.finetune or pipeline.evaluate
    argv: tuple[str, ...]
    folder: str  # where it was submitted: relative paths and own modules are looked up there

    def __call__(self) -> None:
        """Run the entry point as torchrun would; have the job requeued if it was interrupted.

        Raises:
            SystemExit: with the entry point's code, if it is not 0.
        """
        requeue = signal.getsignal(signal.SIGUSR2)  # submitit's, before the run takes the signal
        submitit.helpers.TorchDistributedEnvironment().export(
            set_cuda_visible_devices=False, overwrite=True
        )
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # torchrun's default
        os.chdir(self.folder)
        sys.argv = [self.module, *self.argv]
        try:
            importlib.import_module(self.module).main()
        except SystemExit as end:
            if end.code in (None, 0):
                return
            if end.code == STOPPED_EXIT_CODE and _should_be_requeued() and callable(requeue):
                requeue(signal.SIGUSR2, None)  # rank 0 does not come back from here
                time.sleep(_REQUEUE_WAIT)
            raise

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """What submitit queues in place of this: the same task, which resumes from its files."""
        return submitit.helpers.DelayedSubmission(self)


@dataclass(frozen=True)
class Merge:
    """Joins the shards of an evaluation once their jobs have ended."""

    folder: str

    def __call__(self) -> None:
        """Write the summary and print it.

        Raises:
            SystemExit: images are missing; says which shards'.
        """
        from pipeline.evaluation import merge
        from pipeline.evaluation.summary import format_summary, write_outputs

        folder = Path(self.folder)
        with exit_on_user_error():
            merged = merge.merge_shards(folder)
            if not merged.complete:
                raise UserError(
                    f"{merged.missing_message()}; the same command repeats those shards alone"
                )
            print(format_summary(write_outputs(folder, merged)))


@dataclass(frozen=True)
class Report:
    """Makes the tables and figures of a chain."""

    folder: str

    def __call__(self) -> None:
        """As tools/report.py chain.

        Raises:
            SystemExit: something is missing; says what.
        """
        from pipeline.reports import chain_report

        with exit_on_user_error():
            print(chain_report.write(Path(self.folder)))


def _should_be_requeued() -> bool:
    """Whether the run was preempted or its time is up; SIGTERM alone is scancel's."""
    from pipeline.runtime.signals import received_signals

    return signal.SIGUSR2 in received_signals()
