"""The training loop: steps, schedule, accumulation, guards, evaluation, checkpoints.

In: a net, two indices, a configuration, the ranks. Out: a folder with checkpoints, metrics and
the history of evaluations. Everything a step does is a function of the weights, the optimiser's
state and the step's number, so a run resumed from a checkpoint is the run that was cut.
"""

import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.config import FinetuneConfig, parse
from pipeline.data import mean_image
from pipeline.data.batches import TrainingPlan
from pipeline.data.index import Index
from pipeline.data.loader import Batch, Loader
from pipeline.errors import Stopped, first_line, warn
from pipeline.evaluation import attack_space, contact_sheet
from pipeline.evaluation.evaluator import Finished
from pipeline.evaluation.measure import Measurement, gather_samples
from pipeline.evaluation.protocol import evaluation_protocol
from pipeline.evaluation.samples import Example
from pipeline.evaluation.statistics import nonfinite_warning, summarize
from pipeline.models import prepare
from pipeline.models.build import portable_state
from pipeline.models.weight_classes import with_classes
from pipeline.runtime.distributed import DistributedContext
from pipeline.runtime.monitor import Monitor, peak_memory_mib
from pipeline.runtime.seeds import derive_seed
from pipeline.runtime.signals import StopRequest
from pipeline.training.checkpoint import Checkpoints, State, damaged, read, write
from pipeline.training.memory_budget import MemoryBudget
from pipeline.training.objective import Losses, Objective, data_parallel
from pipeline.training.schedule import Schedule
from pipeline.training.step_stats import (
    LogWindow,
    StepStats,
    batch_sums,
    is_nonfinite,
    raise_nonfinite,
)


class Trainer:
    """Fine-tunes a net with Deep Defense.

    Attributes:
        step: optimiser steps done.
        history: the evaluations so far, each a dictionary with step, epoch, accuracy, rho2, ...
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
            config: of the run.
            ranks: this process among all.
            net: on the CPU, the same on every rank.
            indices: of the training and the evaluation images.
            threads: decoding threads of this rank.
        """
        self.config, self.ranks, self.threads = config, ranks, threads
        self.train_index, self.val_index = indices
        self.fingerprint = self.train_index.fingerprint  # of what is trained on
        if isinstance(config.data.mean, str):
            self.fingerprint += f", mean {mean_image.identity(config.data)}"
        if config.output is None:
            raise ValueError("a run needs config.output")
        self.folder = Path(config.output)
        self.plan = TrainingPlan(
            self.train_index, config.data, config.train, ranks.rank, ranks.world_size
        )
        self.schedule = Schedule(config, self.plan.steps_per_epoch)
        self.checkpoints = Checkpoints(self.folder / "checkpoints", config.checkpoint)
        layout = prepare.memory_format(config.runtime, ranks.device)
        self.net = net.to(ranks.device).to(memory_format=layout)
        self.objective = Objective(self.net, config)
        self.budget = self._choose_micro_batch()
        self.ddp = data_parallel(
            self.objective, ranks.device, sync_buffers=not config.model.freeze_batch_norm
        )
        self.parameters = self.objective.view.parameters()
        self.optimizer = torch.optim.SGD(
            self.parameters,
            lr=config.optim.lr,
            momentum=config.optim.momentum,
            weight_decay=config.optim.weight_decay,
        )
        fp16 = config.runtime.precision == "fp16"
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=fp16)
        self.protocol = evaluation_protocol(
            config.evaluation, config.runtime, prepare.num_classes_of(config, indices[0])
        )
        self.step = 0
        self.history: list[dict[str, Any]] = []
        self.seconds = 0.0  # spent in training steps, over all parts of the run
        self.window = LogWindow()
        self.rho = self.protocol.rho_name

    def _choose_micro_batch(self) -> MemoryBudget | None:
        """How many images the attack holds at once, where that is to be found out."""
        if self.config.regularizer.max_images != "auto" or not self.objective.attacks:
            return None
        data, ranks = self.config.data, self.ranks
        shape = (data.channels, data.crop, data.crop)
        mine = self.objective.max_images_that_fit(
            shape, self.plan.pass_size, ranks.device, ranks.local_size
        )
        least = min(ranks.gather(mine))  # ranks in step do as much work each
        self.objective.at_once = least.images
        return least

    def resume(self) -> Path | None:
        """Go on from the checkpoint that ``--resume`` names, if there is one."""
        # All ranks take what the first one sees, should the folder change meanwhile.
        path = self.ranks.gather(self.checkpoints.find(self.config.resume))[0]
        if path is not None:
            state = read(path, self.config, self.fingerprint, self.train_index.classes)
            try:
                self.net.load_state_dict(state["model"])
                self.optimizer.load_state_dict(state["optimizer"])
                self.scaler.load_state_dict(state["scaler"])
            except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise damaged(path, f"does not fit the net ({first_line(error)})") from None
            self.step, self.history = state["step"], state["history"]
            self.seconds = state["seconds"]
            self.window = LogWindow(state.get("window", ()))  # older checkpoints have none
        return path

    def fit(self, monitor: Monitor) -> None:
        """Train to the end, evaluating and saving on the way.

        Raises:
            Stopped: after a signal, with everything saved.
            UserError: an image does not decode, the loss is not finite, the disk is full.
        """
        self.stop = StopRequest()
        if self.ranks.is_main and len(self.history) > 1:  # the first is the reference
            values = [entry[self._best_metric] for entry in self.history[1:]]
            best_step = self.history[1 + values.index(max(values))]["step"]
            warn(self.checkpoints.restore_best(best_step, self.step))
        self._warm_up_ddp()
        with closing(iter(self._loader())) as batches:
            self._train_loop(monitor, batches)

    def _warm_up_ddp(self) -> None:
        """Have DDP lay out its gradients now. It does so after the first backward pass that it
        sees, in the order they arrived, and the sums of more than two ranks depend on the layout:
        a resumed run, which sees another pass first, would go on with other last bits."""
        data = self.config.data
        images = torch.zeros(2, data.channels, data.crop, data.crop, device=self.ranks.device)
        labels = torch.zeros(2, dtype=torch.long, device=self.ranks.device)
        self.objective.eval()  # batch norm's statistics stay
        self.ddp(images, labels, False).loss.backward()
        self.optimizer.zero_grad(set_to_none=True)
        self.objective.train()

    def _train_loop(self, monitor: Monitor, batches: Iterator[Batch]) -> None:
        self.window.restart_clock(self.loader.wait_seconds)
        monitor.start_progress("training", self.schedule.total_steps, self.step)
        while True:
            if self.schedule.should_evaluate(self.step) and not self._evaluated():
                self._evaluate(monitor)
                monitor.start_progress("training", self.schedule.total_steps, self.step)
                self.window.restart_clock(self.loader.wait_seconds)
            if self.step == self.schedule.total_steps:
                return
            begin = time.perf_counter()
            done = self._train_step(batches)
            self.step += 1
            self.seconds += time.perf_counter() - begin
            self.window.sums += done
            if self.step % self.config.log.every_steps == 0:
                self._log(monitor)
                self.window.restart(self.loader.wait_seconds)
            if done.stop:
                self._save()
                raise Stopped
            if self.step % self.config.checkpoint.every_steps == 0:
                self._save()

    def _loader(self) -> Loader:
        config = self.config
        self.loader = Loader(
            self.train_index,
            self.plan.specs(self.step, self.schedule.total_steps),
            *(config.data, self.ranks.device, self.plan.pass_size, self.threads),
            half=config.data.half_input,
        )
        return self.loader

    def _train_step(self, batches: Iterator[Batch]) -> StepStats:
        """One optimiser step; the sums over all ranks of what it saw."""
        accumulation = self.config.train.accumulation
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.lr(self.step)
        total = torch.zeros(len(StepStats()), dtype=torch.float64, device=self.ranks.device)
        seen: list[tuple[Batch, Losses]] = []
        for number in range(accumulation):
            batch = next(batches)
            self._seed(number)
            last = number == accumulation - 1
            with nullcontext() if last else self.ddp.no_sync():
                losses = self.ddp(
                    batch.images, batch.labels, self.schedule.is_finetuning_step(self.step)
                )
                self.scaler.scale(losses.loss / accumulation).backward()
            total += batch_sums(losses)
            seen.append((batch, losses._replace(loss=losses.loss.detach())))
        total[-1] = self.stop.received
        done = StepStats(*self.ranks.sum(total).tolist())
        if done.num_nonfinite:
            rows = [
                r for batch, losses in seen for r in batch.rows[is_nonfinite(losses).cpu().numpy()]
            ]
            ids = self.ranks.gather([self.train_index.id(row) for row in rows])
            raise_nonfinite(
                self.step + 1, int(done.num_nonfinite), [name for part in ids for name in part]
            )
        self._update()
        if self.schedule.is_finetuning_step(self.step):
            self.objective.after_step(self.step + 1)
        return done

    def _update(self) -> None:
        self.scaler.unscale_(self.optimizer)
        if self.config.optim.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.config.optim.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def _seed(self, number: int) -> None:
        """Dropout's randomness is a function of the run's seed, the step, the pass and the rank."""
        seed = derive_seed(self.config.train.seed, self.step, number, self.ranks.rank)
        torch.manual_seed(seed)
        self.objective.view.seed = seed // 2

    def _log(self, monitor: Monitor) -> None:
        step = self.step - 1  # the schedule of the step just done
        regularised = self.schedule.is_finetuning_step(step) and self.objective.measures
        values = self.window.sums.means(regularised)
        values |= {
            "lr": self.schedule.lr(step),
            **self.window.rates(self.loader.wait_seconds),
            "peak_memory_mib": peak_memory_mib(self.ranks.device),
            "epoch": self.step / self.plan.steps_per_epoch,
        }
        if self.scaler.is_enabled():
            values["loss_scale"] = self.scaler.get_scale()
        monitor.scalars(self.step, "train", values)
        shown = ("loss", "accuracy", "rho2", "images_per_second")
        note = "  ".join(f"{name} {values[name]:.4g}" for name in shown if name in values)
        monitor.progress(self.step, note)

    def _evaluated(self) -> bool:
        return any(entry["step"] == self.step for entry in self.history)

    def _evaluate(self, monitor: Monitor) -> None:
        """Accuracy and rho2 now, over all ranks; then a checkpoint, so that it is not repeated."""
        rows = self.val_index.subset(self.config.evaluation.num_images)
        at = f"step {self.step}/{self.schedule.total_steps}"
        monitor.start_progress("evaluating", len(rows), at=at)
        mine = rows[self.ranks.rank :: self.ranks.world_size]
        shown = frozenset(mine[: self.config.log.panel_images].tolist())
        panels: list[Example] = []

        def keep(finished: Finished, _skipped: list[int]) -> None:
            panels.extend(finished.examples)
            monitor.advance(len(finished.samples) * self.ranks.world_size)

        measurement = Measurement(self.net, self.val_index, self.config, self.ranks, self.threads)
        try:
            measured = measurement.run(rows, keep, shown, self.stop)
        except Stopped:  # the evaluation is repeated when the run is resumed
            self._save()
            raise
        if monitor.active and panels:
            data = attack_space.data_options(self.config.data, self.config.evaluation)
            sheet = contact_sheet.draw(sorted(panels), self.val_index.class_names, data)
            monitor.figure(self.step, "perturbations", sheet)
        samples, skipped = gather_samples(*measured, rows, self.ranks)
        epoch = (self.step - self.schedule.clean_steps) / self.plan.steps_per_epoch
        statistics = summarize(samples, self.protocol)
        summary = {**statistics.to_dict(), "num_skipped": len(skipped)}
        metric = self._best_metric
        earlier = [entry[metric] for entry in self.history[1:]]
        tuned = len(self.history) > 0  # the first is the reference
        self.history.append({"step": self.step, "epoch": epoch, **summary})
        monitor.evaluation(self.history[-1], self.rho)
        warn(nonfinite_warning(statistics))
        if not tuned:
            self.export("reference.pth")
        self._save(best=tuned and all(summary[metric] > value for value in earlier))

    @property
    def _best_metric(self) -> str:
        """What best.pt is the best of, as the history names it."""
        return "accuracy" if self.config.checkpoint.best == "accuracy" else self.rho

    def _save(self, best: bool = False) -> None:
        if self.ranks.is_main:
            state: State = {
                "model": self.net.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "step": self.step,
                "history": self.history,
                "seconds": self.seconds,
                "window": list(self.window.sums),
                "config": parse.to_dict(self.config),
                "index": self.fingerprint,
                "classes": self.train_index.classes.to_dict(),
            }
            self.checkpoints.save(self.step, state, best)

    def gather_skipped_ids(self) -> list[str]:
        """Ids of the training images that did not decode on any rank, in this part of the run."""
        rows = {row for part in self.ranks.gather(self.loader.skipped) for row in part}
        return sorted(self.train_index.id(row) for row in rows)

    def export(self, name: str) -> None:
        """Write the net's weights alone, for any program that reads a state dict."""
        if self.ranks.is_main:
            state = with_classes(portable_state(self.net), self.train_index.classes)
            write(self.folder / name, state)
