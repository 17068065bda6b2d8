"""Measures accuracy, rho2 and FGS of a net on an index. Each image is measured on exactly one rank.

In: a net, an index, the rows that are not done. Out: `Samples` of this rank, as images finish.
Ranks do not communicate until the end; then their results are joined by row.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import nn

from pipeline.attacks.lower_bound import why_not_computable
from pipeline.attacks.references import NUM_REFERENCES, References
from pipeline.config import DataConfig, RunConfig
from pipeline.data.batches import evaluation_specs
from pipeline.data.index import Index
from pipeline.data.loader import Loader
from pipeline.errors import Stopped, UserError
from pipeline.evaluation import attack_space
from pipeline.evaluation.evaluator import Evaluator, Finished
from pipeline.evaluation.samples import Samples
from pipeline.models.attack_view import AttackView
from pipeline.models.precision import upcast
from pipeline.runtime.distributed import DistributedContext
from pipeline.runtime.reproducibility import deterministic_algorithms, images_at_once
from pipeline.runtime.signals import StopRequest

# Called with the images that have finished, and with the rows of images that did not decode.
OnFinished = Callable[[Finished, list[int]], None]


@dataclass(frozen=True)
class Measurement:
    """An evaluation of a net on an index."""

    net: nn.Module  # computes logits of images
    index: Index  # the images
    config: RunConfig  # the sections data, evaluation and runtime are used
    ranks: DistributedContext  # this rank and its device
    threads: int  # number of threads that decode images

    def run(
        self,
        rows: np.ndarray,
        on_finished: OnFinished = lambda *_: None,
        examples: frozenset[int] = frozenset(),
        stop: StopRequest | None = None,
    ) -> tuple[Samples, list[int]]:
        """Evaluate this rank's share of ``rows``.

        Args:
            rows: rows of the index to evaluate, the same on every rank.
            on_finished: called after each step with the images that have finished, and with the
                rows of images that did not decode and were left out.
            examples: rows whose perturbations are passed to ``on_finished``.
            stop: the signals of this rank, which are checked after each step. With this argument,
                all ranks must call the method.

        Returns:
            This rank's results, and the rows of images that were left out.

        Raises:
            Stopped: raised on every rank, if one of them received a signal.
        """
        if stop is None:
            return self._run_repeatably(rows, on_finished, examples)

        def keep_until_stopped(finished: Finished, skipped: list[int]) -> None:
            on_finished(finished, skipped)
            if stop.received:
                raise Stopped

        results = self.ranks.run_unless_stopped(
            lambda: self._run_repeatably(rows, keep_until_stopped, examples)
        )
        if results is None:
            raise Stopped
        return results

    @cached_property
    def no_lower_bound(self) -> str:
        """Why evaluation.lower_bound cannot be measured, in one line; empty if it can, or if it is
        false."""
        config, device = self.config, self.ranks.device
        if not config.evaluation.lower_bound:
            return ""
        view = attack_space.attack_view_of(self.net, config.data, config.evaluation, device)
        size = config.data.crop_size
        return why_not_computable(view, (config.data.channels, size, size), device)

    def _run_repeatably(
        self, rows: np.ndarray, on_finished: OnFinished, examples: frozenset[int]
    ) -> tuple[Samples, list[int]]:
        with repeatable_algorithms(self.config, self.ranks.device):
            return self._run(rows, on_finished, examples)

    def _run(
        self, rows: np.ndarray, on_finished: OnFinished, examples: frozenset[int]
    ) -> tuple[Samples, list[int]]:
        evaluation, device = self.config.evaluation, self.ranks.device
        share = rows[self.ranks.rank :: self.ranks.world_size]
        size = images_at_once(evaluation.batch_size, device)
        data = attack_space.data_options(self.config.data, evaluation)
        view = attack_space.attack_view_of(self.net, self.config.data, evaluation, device)
        if self.no_lower_bound:
            evaluation = replace(evaluation, lower_bound=False)
        specs = evaluation_specs(self.index, share, data, size)
        loader = Loader(self.index, specs, data, device, size, self.threads)
        evaluator = Evaluator(view, evaluation, size, examples, self._references(view, data))
        no_samples = evaluator.no_samples()
        parts, num_reported, num_done = [no_samples], 0, 0
        self.ranks.progress.count_images(0)

        def report(finished: Finished) -> None:
            nonlocal num_reported, num_done
            parts.append(finished.samples)
            on_finished(finished, loader.skipped[num_reported:])
            num_reported = len(loader.skipped)
            num_done += len(finished.samples)
            self.ranks.progress.count_images(num_done)

        if len(share):
            for batch in loader:
                for finished in evaluator.add_batch(batch):
                    report(finished)
        for finished in evaluator.drain():
            report(finished)
        if num_reported < len(loader.skipped):
            report(Finished(no_samples, []))
        self.ranks.progress.end_evaluation()
        return Samples.concatenate(parts), loader.skipped

    def _references(self, view: AttackView, data: DataConfig) -> References | None:
        """The images for the upper bounds, the same on every rank and in every shard.

        Raises:
            UserError: none of them decodes.
        """
        evaluation = self.config.evaluation
        if not evaluation.diagnostics and evaluation.attack.methods == ["deepfool"]:
            return None
        rows = self.index.subset(NUM_REFERENCES)
        size = min(images_at_once(evaluation.batch_size, self.ranks.device), len(rows))
        specs = evaluation_specs(self.index, rows, data, size)
        loader = Loader(self.index, specs, data, self.ranks.device, size, self.threads)
        batches = [upcast(batch.images) for batch in loader]
        if not batches:
            raise UserError(
                f"{self.index.path}: none of {len(rows)} images decodes; check the archives, or "
                "make the index again with tools/index.py --verify"
            )
        return References.of(view, batches)


def repeatable_algorithms(config: RunConfig, device: torch.device) -> AbstractContextManager[None]:
    """A block that computes with the algorithms of evaluations: repeatable ones, unless
    runtime.deterministic is false."""
    return deterministic_algorithms(device, config.runtime.deterministic is not False)


def gather_samples(
    rank_samples: Samples, skipped: list[int], rows: np.ndarray, ranks: DistributedContext
) -> tuple[Samples, list[int]]:
    """Join the ranks' results and check that each row was evaluated exactly once.

    Args:
        rank_samples: this rank's results.
        skipped: this rank's rows of images that did not decode.
        rows: rows of all ranks.
        ranks: this rank; all ranks must call this function.

    Returns:
        The results of all ranks, and the rows of images that did not decode.
    """
    parts = ranks.gather((rank_samples, skipped))
    samples = Samples.concatenate(samples_of_rank for samples_of_rank, _ in parts)
    all_skipped = sorted(row for _, skipped_of_rank in parts for row in skipped_of_rank)
    done = np.concatenate([samples.row, np.array(all_skipped, np.int64)])
    assert np.array_equal(np.sort(done), np.sort(rows)), "an image was not evaluated exactly once"
    return samples, all_skipped
