"""The optimiser steps of a run: batches to changed weights.

In: this rank's batches. Out: `StepStats` over all ranks, or an error that names the images whose
loss is not finite.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from pipeline.config import FinetuneConfig
from pipeline.data.batches import TrainingPlan
from pipeline.data.loader import Batch
from pipeline.regularizer.sampling import uniform_numbers
from pipeline.runtime.distributed import DistributedContext
from pipeline.runtime.host_copy import HostCopy
from pipeline.runtime.reproducibility import deterministic_algorithms
from pipeline.runtime.seeds import derive_seed
from pipeline.runtime.signals import StopRequest
from pipeline.training.memory_budget import MemoryBudget
from pipeline.training.objective import Losses, Objective, data_parallel
from pipeline.training.optimizer import Optimizer
from pipeline.training.schedule import Schedule
from pipeline.training.step_stats import (
    StepStats,
    is_nonfinite,
    raise_nonfinite,
    sum_batches,
    unstack_sums,
)
from pipeline.training.targets import make_targets


class StepRunner:
    """Runs optimiser steps, together with the other ranks.

    Attributes:
        objective: the net and its losses.
        budget: how many images fit into memory at once; None unless it was measured.
        parameters: the trained parameters.
        optimizer: updates the parameters.
    """

    def __init__(
        self,
        net: nn.Module,
        config: FinetuneConfig,
        ranks: DistributedContext,
        plan: TrainingPlan,
        schedule: Schedule,
    ) -> None:
        """Prepare the objective and the optimiser.

        Args:
            net: the net on the device of this rank, the same on every rank, with the weights that
                a new run starts from, also if this run resumes.
            config: the options of the run.
            ranks: this rank and its device.
            plan: size of the batches, and the index of the training images.
            schedule: learning rate and kind of each step.
        """
        self.config, self.ranks, self.plan, self.schedule = config, ranks, plan, schedule
        self.objective = Objective(net, config)
        self._targets = make_targets(net, config)
        self.budget = self._limit_images()
        self.parameters = self.objective.view.parameters()
        self.optimizer = Optimizer(self.parameters, config, ranks.device)
        self._ddp = data_parallel(
            self.objective, ranks.device, sync_buffers=not config.model.freeze_batch_norm
        )

    def _limit_images(self) -> MemoryBudget | None:
        """Measure how many images fit into memory at once, if the options say so."""
        if self.config.regularizer.max_images != "auto" or not self.objective.attacks:
            return None
        data, ranks = self.config.data, self.ranks
        own_budget = self.objective.max_images_that_fit(
            (data.channels, data.crop_size, data.crop_size),
            self.plan.pass_size,
            ranks.device,
            ranks.local_size,
        )
        # The same number on all ranks: each step takes as long as the slowest of them.
        budget = min(ranks.gather(own_budget), key=lambda budget: budget.images)
        self.objective.limit_images(budget.images)
        return budget

    def warm_up(self) -> None:
        """Let DDP choose the order of its gradient buckets, on a batch of zeros.

        It uses the order in which gradients arrive in the first backward pass. Sums over more than
        two ranks depend on that order, and the first pass of a resumed run is another one than that
        of a run without interruption: without this, their last bits would differ.
        """
        data = self.config.data
        images = torch.zeros(
            2, data.channels, data.crop_size, data.crop_size, device=self.ranks.device
        )
        labels = torch.zeros(2, dtype=torch.long, device=self.ranks.device)
        self.objective.eval()  # batch norm must not update its statistics
        self._ddp(images, labels, use_methods=False).loss.backward()
        self.optimizer.clear_gradients()
        self.objective.train()

    def run(self, step: int, batches: Iterator[Batch], stop: StopRequest | None) -> StepStats:
        """Do one optimiser step.

        Args:
            step: number of the step, from 0.
            batches: batches of this rank; the next ``train.gradient_accumulation_steps`` are used.
            stop: the signals of this rank; ``num_stopped`` in the result counts ranks with one.

        Raises:
            UserError: the loss is not finite.
        """
        repeatable = self.config.runtime.deterministic is True
        with (
            self.ranks.step_deadline,
            deterministic_algorithms(self.ranks.device, repeatable),
        ):
            return self._run(step, batches, stop)

    def _run(self, step: int, batches: Iterator[Batch], stop: StopRequest | None) -> StepStats:
        self.optimizer.set_lr(self.schedule.lr(step))
        passes: list[tuple[Batch, Losses]] = []
        accumulation = self.config.train.gradient_accumulation_steps
        for number in range(accumulation - 1):
            with self._ddp.no_sync():
                batch = self._load(step, batches)
                loss, losses = self._forward(batch, number, step)
                passes.append((batch, losses))
                self.optimizer.backward(loss / accumulation)
                del loss  # its graph holds perturbations after the backward pass
        batch = self._load(step, batches)
        loss, losses = self._forward(batch, accumulation - 1, step)
        passes.append((batch, losses))
        # Queued before the backward pass, which waits for all ranks on the GPU.
        own_sums = HostCopy(
            sum_batches(
                (losses for _, losses in passes),
                self.ranks.device,
                stop=stop is not None and stop.received,
            )
        )
        self._enter(step, "backward pass")
        self.optimizer.backward(loss / accumulation)
        del loss
        sums = own_sums.wait()
        self._enter(step, "sums over the ranks")
        stats = unstack_sums(self.ranks.sum(sums))
        if stats.num_nonfinite:
            self._raise_nonfinite(step, int(stats.num_nonfinite), passes)
        self.optimizer.step()
        if self.schedule.is_finetuning_step(step):
            self.objective.after_step(step + 1)
        self._enter(step, "done")
        return stats

    def _enter(self, step: int, stage: str) -> None:
        """Record what this rank does, for messages about lost ranks."""
        self.ranks.progress.enter_step(step + 1, stage)

    def _load(self, step: int, batches: Iterator[Batch]) -> Batch:
        self._enter(step, "loading images")
        batch = next(batches)
        self._enter(step, "forward pass")
        return batch

    def _forward(self, batch: Batch, number: int, step: int) -> tuple[Tensor, Losses]:
        """The loss of one of the step's batches, and its losses without a graph."""
        self._seed_dropout(number, step)
        use_methods = self.schedule.is_finetuning_step(step)
        if use_methods and self.objective.attacks:
            self._draw_uniform(number, step, len(batch.images))
        losses = self._ddp(batch.images, self._targets(batch), use_methods=use_methods)
        return losses.loss, losses._replace(loss=losses.loss.detach())

    def _seed_dropout(self, number: int, step: int) -> None:
        """Make dropout a function of the run's seed, the step, the batch's number and the rank."""
        seed = derive_seed(self.config.train.seed, step, number, self.ranks.rank)
        torch.manual_seed(seed)
        self.objective.view.seed_dropout(seed // 2)

    def _draw_uniform(self, number: int, step: int, num_images: int) -> None:
        """Give the objective random numbers that do not depend on the number of ranks."""
        train = self.config.train
        uniform = uniform_numbers(train.seed, step, train.batch_size)[self.plan.part(number)]
        # The host does not wait for the device.
        self.objective.uniform = torch.from_numpy(uniform[:num_images]).to(
            self.ranks.device, non_blocking=True
        )

    def _raise_nonfinite(self, step: int, number: int, passes: list[tuple[Batch, Losses]]) -> None:
        """Raise the error that names the images whose loss is not finite, of all ranks."""
        own_ids = [
            self.plan.index.id(row)
            for batch, losses in passes
            for row in batch.rows[is_nonfinite(losses).cpu().numpy()]
        ]
        ids = [image_id for rank_ids in self.ranks.gather(own_ids) for image_id in rank_ids]
        raise_nonfinite(step + 1, number, ids)
