"""The training loop: when to step, evaluate, log and save.

In: a net, the indices of the training and the held-out images, a configuration, the ranks. Out: a
folder with checkpoints and metrics, and the history of evaluations. Each step depends only on the
weights, the optimiser's state and the step's number, so a run that is resumed from a checkpoint
gives the same weights as a run without interruption.
"""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from torch import nn

from pipeline.config import FinetuneConfig, parse
from pipeline.data.batches import TrainingPlan
from pipeline.data.index import Index
from pipeline.data.loader import Batch, Loader, TrainingLoader
from pipeline.errors import Stopped, first_line, warn
from pipeline.evaluation.measure import Measurement
from pipeline.evaluation.protocol import evaluation_protocol, rho_name
from pipeline.evaluation.samples import Samples
from pipeline.evaluation.statistics import distance_warnings, nonfinite_warning, summarize
from pipeline.models import prepare
from pipeline.models.weight_classes import with_classes
from pipeline.models.weights import portable_state
from pipeline.runtime import allocator
from pipeline.runtime.distributed import DistributedContext
from pipeline.runtime.monitor import Monitor
from pipeline.runtime.signals import StopRequest
from pipeline.training import checkpoint
from pipeline.training.checkpoint import Checkpoints, CheckpointState
from pipeline.training.evaluation import evaluate_held_out
from pipeline.training.fingerprint import fingerprint
from pipeline.training.history import History, HistoryEntry
from pipeline.training.interval_timer import IntervalTimer
from pipeline.training.resume_point import REFERENCE, continue_from, resume_point
from pipeline.training.schedule import Schedule
from pipeline.training.step_runner import StepRunner
from pipeline.training.step_stats import LogWindow, StepStats


class Trainer:
    """Fine-tunes a net.

    Attributes:
        runner: does the optimiser steps.
        step: optimiser steps done.
        seconds: time spent in optimiser steps, over all parts of an interrupted run.
        history: the evaluations so far.
        classes: the classes of the net's outputs.
        stop: the signals that were received; None before `fit`.
        loader: loads the training images; None before `fit`.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        ranks: DistributedContext,
        net: nn.Module,
        indices: tuple[Index, Index],
        threads: int,
    ) -> None:
        """Prepare a run; nothing is written yet.

        Args:
            config: the options of the run.
            ranks: this rank and its device.
            net: the net on the CPU, the same on every rank.
            indices: the indices of the training and the held-out images.
            threads: decoding threads of this rank.
        """
        self.config, self.ranks, self.threads = config, ranks, threads
        self.folder = config.folder
        self.train_index, self.val_index = indices
        labelled = prepare.labelled_indices(config, *indices)[0]
        self.classes = labelled.classes
        self.decoder = config.data.decoder_on(ranks.device.type)
        self.fingerprint = fingerprint(config, self.train_index, net)
        self.plan = TrainingPlan(
            self.train_index, config.data, config.train, ranks.rank, ranks.world_size
        )
        self.schedule = Schedule(config, self.plan.steps_per_epoch)
        self.checkpoints = Checkpoints(self.folder / "checkpoints", config.checkpoint)
        self.net = prepare.move_net(net, config.runtime, ranks.device)
        self.runner = StepRunner(self.net, config, ranks, self.plan, self.schedule)
        num_classes = prepare.num_classes_of(config, labelled)
        self.protocol = evaluation_protocol(config.evaluation, config.runtime, num_classes)
        self.rho = self.protocol.rho_name  # rho2, or the name for another norm
        self.train_rho = rho_name(config.regularizer.attack.norm)
        best_metric = "accuracy" if config.checkpoint.best == "accuracy" else self.rho
        self.history = History(best_metric)
        self.step = 0
        self.seconds = 0.0
        self.stop: StopRequest | None = None
        self.loader: Loader | None = None
        self.window = LogWindow(IntervalTimer(self._total_waited))

    def resume(self) -> Path | None:
        """Continue from the checkpoint that ``--resume`` selects; returns its path, if any.

        Raises:
            UserError: the checkpoint is damaged, or of a run with other options.
        """
        point = None
        if self.ranks.is_main:
            set_aside = not self.config.dry_run
            point = resume_point(self.checkpoints, self.config.resume, set_aside)
        # All ranks use the file that rank 0 has read: the folder may change meanwhile.
        path = self.ranks.gather(point and point.path)[0]
        if path is not None:
            state = checkpoint.load(path) if point is None else point.state
            own = (self.config, self.fingerprint, self.classes, self.decoder)
            checkpoint.check(path, state, *own)
            warn(checkpoint.decoder_warning(path, state, self.decoder))
            self._restore(path, state)
            if point and path == Path(self.config.resume) and not self.config.dry_run:
                continue_from(self.checkpoints, path, self.step)
        return path

    def _restore(self, path: Path, state: CheckpointState) -> None:
        errors = (RuntimeError, ValueError, KeyError, TypeError, AttributeError)
        try:
            self.net.load_state_dict(state["model"])
            self.runner.optimizer.load_state_dict(state)
        except errors as error:
            raise checkpoint.damaged(path, f"does not fit the net ({first_line(error)})") from None
        try:
            self.history.restore(state["history"])
            self.window.restore(state.get("window", ()))  # older checkpoints have none
        except errors as error:
            problem = f"has an invalid history or window ({first_line(error)})"
            raise checkpoint.damaged(path, problem) from None
        self.step, self.seconds = state["step"], state["seconds"]

    def fit(self, monitor: Monitor) -> None:
        """Train to the end, with evaluations and checkpoints.

        Raises:
            Stopped: after a signal; everything is saved.
            UserError: an image cannot be decoded, the loss is not finite, the disk is full.
        """
        self.stop = StopRequest()
        self._restore_best()
        self.runner.warm_up()
        self.loader = TrainingLoader(
            self.train_index,
            self.plan.specs(self.step, self.schedule.total_steps),
            self.config.data,
            self.ranks.device,
            self.plan.pass_size,
            self.threads,
        )
        with closing(iter(self.loader)) as batches:
            self._train_loop(monitor, batches)

    def _restore_best(self) -> None:
        """Make best.pt the checkpoint that the history names as the best."""
        best_step = self.history.best_step()
        if self.ranks.is_main and best_step is not None:
            warn(self.checkpoints.restore_best(best_step, self.step))

    def _train_loop(self, monitor: Monitor, batches: Iterator[Batch]) -> None:
        self._begin_training(monitor)
        while True:
            if self.schedule.should_evaluate(self.step) and not self.history.has_step(self.step):
                self._evaluate(monitor)
                self._begin_training(monitor)
            if self.step == self.schedule.total_steps:
                return
            stats = self._train_step(batches)
            if self.step % self.config.log.every_steps == 0:
                self._log(monitor)
                self.window.restart()
            if stats.num_stopped:
                self._save()
                self.ranks.barrier()  # SLURM and torchrun kill rank 0 soon after another has ended
                raise Stopped
            if self.step % self.config.checkpoint.every_steps == 0:
                self._save()

    def _begin_training(self, monitor: Monitor) -> None:
        monitor.start_progress("training", self.schedule.total_steps, self.step)
        self.window.restart_timer()

    def _train_step(self, batches: Iterator[Batch]) -> StepStats:
        """Do one optimiser step and count it; returns its sums over all ranks."""
        timer = IntervalTimer()
        self.runner.objective.typical_ratio = self.history.last(self.rho)
        stats = self.runner.run(self.step, batches, self.stop)
        self.step += 1
        self.seconds += timer.seconds
        self.window.add(stats)
        return stats

    def _log(self, monitor: Monitor) -> None:
        """Write the line of metrics of the steps since the last one."""
        last_step = self.step - 1
        use_methods = self.schedule.is_finetuning_step(last_step)
        with_methods = use_methods and self.runner.objective.measures
        values = self.window.sums.means(with_methods, self.train_rho)
        values |= {
            "lr": self.schedule.lr(last_step),
            **self.window.rates(),
            "peak_memory_mib": allocator.peak_memory_mib(self.ranks.device),
            "epoch": self.step / self.plan.steps_per_epoch,
        }
        loss_scale = self.runner.optimizer.loss_scale
        if loss_scale is not None:
            values["loss_scale"] = loss_scale
        monitor.scalars(self.step, "train", values)
        shown = ("loss", "accuracy", self.train_rho, "images_per_second")
        note = "  ".join(f"{name} {values[name]:.4g}" for name in shown if name in values)
        monitor.progress(self.step, note)

    @property
    def held_out(self) -> Measurement:
        """The evaluation of the net on the held-out images."""
        return Measurement(self.net, self.val_index, self.config, self.ranks, self.threads)

    def _evaluate(self, monitor: Monitor) -> None:
        """Evaluate the net, and save a checkpoint so that a resumed run does not repeat it."""
        try:
            samples, skipped = evaluate_held_out(
                self.held_out,
                self.config.log.panel_images,
                self.stop,
                monitor,
                self.step,
                self.schedule.total_steps,
            )
        except Stopped:  # the resumed run repeats the evaluation
            self._save()
            raise
        self._record(samples, len(skipped), monitor)

    def _record(self, samples: Samples, num_skipped: int, monitor: Monitor) -> None:
        """Add an evaluation to the history and to the metrics, and save a checkpoint."""
        statistics = summarize(samples, self.protocol)
        summary = {**statistics.to_dict(), "num_skipped": num_skipped}
        epoch = (self.step - self.schedule.clean_steps) / self.plan.steps_per_epoch
        entry = HistoryEntry(self.step, epoch, summary)
        is_best = self.history.append(entry)
        monitor.evaluation(entry.to_dict(), self.rho)
        warn(nonfinite_warning(statistics), *distance_warnings(statistics))
        if len(self.history) == 1:
            self.export(REFERENCE)
        self._save(best=is_best)

    def _save(self, best: bool = False) -> None:
        """Write a checkpoint, and a copy as best.pt if it is the best so far."""
        self.ranks.progress.enter_step(self.step, "writing a checkpoint")
        if self.ranks.is_main:
            state: CheckpointState = {
                "model": self.net.state_dict(),
                **self.runner.optimizer.state_dict(),
                "step": self.step,
                "history": self.history.to_list(),
                "seconds": self.seconds,
                "window": self.window.sums.to_list(),
                "config": parse.to_dict(self.config),
                "index": self.fingerprint,
                "classes": self.classes.to_dict(),
                "decoder": self.decoder,
            }
            self.checkpoints.save(self.step, state, best)

    def _total_waited(self) -> float:
        """Seconds that training has waited for data so far."""
        return 0.0 if self.loader is None else self.loader.wait_seconds

    def gather_skipped_ids(self) -> list[str]:
        """Ids of the training images that were not decoded on any rank since the run was started
        or resumed; all ranks must call this."""
        own_rows = [] if self.loader is None else self.loader.skipped
        rows = {row for rank_rows in self.ranks.gather(own_rows) for row in rank_rows}
        return sorted(self.train_index.id(row) for row in rows)

    def export(self, name: str) -> None:
        """Write the net's weights alone, for any program that reads a state dict."""
        if self.ranks.is_main:
            state = with_classes(portable_state(self.net), self.classes)
            checkpoint.write(self.folder / name, state)
