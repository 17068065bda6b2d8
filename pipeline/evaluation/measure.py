"""Accuracy, rho2 and FGS of a net over an index, sharded over ranks, each image exactly once.

In: a net, an index, the rows still to do. Out: `Samples` of this rank, as they are found. Ranks
do not talk to one another here; what they found is joined by row afterwards.
"""

import itertools
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.attacks.deepfool import (
    AttackState,
    IterationResult,
    deepfool_iteration,
    initial_state,
    perturbation,
)
from pipeline.attacks.fgs import correct_after_fgs, fgs_direction, smallest_eps
from pipeline.attacks.norms import per_sample_norm
from pipeline.config import EvaluationConfig, RunConfig
from pipeline.data.batches import evaluation_specs
from pipeline.data.index import Index
from pipeline.data.loader import Batch, Loader
from pipeline.errors import Stopped, UserError
from pipeline.evaluation import attack_space
from pipeline.evaluation.samples import Example, Samples
from pipeline.models.attack_view import AttackView, upcast
from pipeline.runtime import allocator
from pipeline.runtime.distributed import DistributedContext
from pipeline.runtime.monitor import Monitor
from pipeline.runtime.reproducibility import images_at_once
from pipeline.runtime.signals import StopRequest

Result = TypeVar("Result")


class Finished(NamedTuple):
    """What is finished."""

    samples: Samples
    examples: list[Example]


class _Clean(NamedTuple):
    """A part of a batch after its clean forward and first iteration."""

    samples: Samples  # of all, without a perturbation yet
    done: IterationResult


class Evaluator:
    """Takes batches, and gives samples back as they finish.

    Unfinished samples of any batch wait in a pool until they fill a batch, so that the net sees
    whole batches in every iteration. When memory runs out, batches are halved.
    """

    def __init__(
        self, view: AttackView, config: EvaluationConfig, size: int, examples: frozenset[int]
    ) -> None:
        """Begin.

        Args:
            view: the net.
            config: what to measure.
            size: images in the net at once.
            examples: rows whose perturbations are kept.
        """
        self.view, self.config, self.at_once = view, config, size
        self._attack = config.attack
        self._wanted = examples
        self._pool: list[AttackState] = []
        self._begun = Samples.empty(len(config.fgs.measured))

    def add_batch(self, batch: Batch) -> Iterator[Finished]:
        """Begin with a batch; what finishes meanwhile, of it or of those before it."""
        for clean in self._in_parts(len(batch.rows), lambda part: self._clean(batch, part)):
            self._begun = Samples.concat([self._begun, clean.samples])
            yield self._sort(clean.done)
        while self._waiting() >= self.at_once:
            yield from self._iterate()

    def drain(self) -> Iterator[Finished]:
        """Finish what is left."""
        while self._waiting() > 0:
            yield from self._iterate()

    def _waiting(self) -> int:
        return sum(map(len, self._pool))

    def _clean(self, batch: Batch, part: slice) -> _Clean:
        """Everything that the clean forward gives, and the first iteration from its graph."""
        images, labels = upcast(batch.images[part]), batch.labels[part]
        graph = self.view.forward_with_grad(images)
        logits = graph.logits.detach()
        fgs = self.config.fgs
        direction = fgs_direction(graph, labels) if fgs.asked else None
        key = torch.from_numpy(batch.rows[part]).to(images.device)
        running = initial_state(self.view, images, logits, self._attack, key=key)
        held, graph = [graph], None
        done = deepfool_iteration(self.view, running, self._attack, held)
        after_fgs = torch.zeros(len(images), 0, dtype=torch.bool)
        if fgs.measured:
            after_fgs = correct_after_fgs(self.view, images, direction.sign, labels, fgs.measured)
        finite = logits.isfinite().all(dim=1)
        prediction = torch.where(finite, running.label, -1)
        eps = torch.full_like(labels, torch.nan, dtype=torch.float64)
        if fgs.search:
            eps = smallest_eps(self.view, images, direction, labels, logits)
        rank = (logits > logits.gather(1, labels[:, None])).sum(dim=1)
        rank = torch.where(finite, rank, logits.shape[1])
        norm = per_sample_norm(images.double(), self._attack.norm)
        columns = _to_numpy(
            label=labels, prediction=prediction, label_rank=rank, image_norm=norm, fgs_eps=eps
        )
        columns |= {"row": batch.rows[part], "fgs_correct": after_fgs.cpu().numpy()}
        samples = Samples.of_columns(columns, after_fgs.shape[1])
        return _Clean(samples, done)

    def _iterate(self) -> Iterator[Finished]:
        """One iteration of the samples that have waited longest, as many as fit."""
        pool = AttackState.join(self._pool)
        first, rest = pool.take(slice(self.at_once)), pool.take(slice(self.at_once, None))
        self._pool = [rest] if len(rest) else []
        results = self._in_parts(
            len(first), lambda part: deepfool_iteration(self.view, first.take(part), self._attack)
        )
        for done in results:
            yield self._sort(done)

    def _sort(self, done: IterationResult) -> Finished:
        """Take the samples that ended out, and put the others back."""
        last = done.state.iteration >= self._attack.max_iterations
        ended = done.ended | last
        going = (~ended).nonzero().squeeze(1)
        if len(going):
            self._pool.append(done.state.take(going))
        rows = ended.nonzero().squeeze(1)
        running = done.state.take(rows)
        delta = perturbation(self.view, running, self._attack)
        columns = _to_numpy(
            row=running.key,
            adversarial=done.prediction[rows],
            steps=running.iteration,
            flipped=done.flipped[rows],
            stuck=done.no_gradient[rows],
            perturbation_norm=per_sample_norm(delta.double(), self._attack.norm),
        )
        mine = np.isin(self._begun.row, columns["row"])
        order = np.argsort(columns["row"])  # what has begun is in the order of rows
        ordered = {name: column[order] for name, column in columns.items()}
        samples = self._begun.take(mine).with_columns(ordered)
        self._begun = self._begun.take(~mine)
        return Finished(samples, self._examples(running, delta, samples))

    def _examples(self, running: AttackState, delta: Tensor, samples: Samples) -> list[Example]:
        if self._wanted.isdisjoint(samples.row.tolist()):
            return []
        found = []
        for position, row in enumerate(running.key.tolist()):
            if row in self._wanted:
                at = int(np.searchsorted(samples.row, row))
                image, change = (v[position].float().cpu().numpy() for v in (running.images, delta))
                before, after = int(samples.prediction[at]), int(samples.adversarial[at])
                found.append(Example(row, image, change, before, after))
        return found

    def _in_parts(self, total: int, work: Callable[[slice], Result]) -> Iterator[Result]:
        """Work on consecutive parts; smaller ones once memory has run out."""
        begin = 0
        while begin < total:
            part = slice(begin, min(begin + self.at_once, total))
            try:
                result = work(part)
            except (RuntimeError, MemoryError) as error:
                if not allocator.is_out_of_memory(error):
                    raise
                result = None  # its traceback, which holds tensors, ends with this block
            if result is None:
                self._halve(part.stop - part.start)
                continue
            begin = part.stop
            yield result

    def _halve(self, tried: int) -> None:
        if tried == 1:
            raise UserError(
                "out of memory with one image in the net; use a smaller net or data.crop_size, or "
                "a machine with more memory"
            )
        self.at_once = tried // 2
        self.view.least = min(self.view.least, self.at_once)
        allocator.release_cached_memory()
        print(
            f"warning: {tried} images at once do not fit in memory; going on with {self.at_once} "
            "(evaluation.batch_size)",
            file=sys.stderr,
            flush=True,
        )


def _to_numpy(**columns: Tensor) -> dict[str, np.ndarray]:
    """One transfer from the device for all columns (N,), as float64."""
    values = torch.stack([column.double() for column in columns.values()]).cpu().numpy()
    return dict(zip(columns, values, strict=True))


def measure(
    net: nn.Module,
    index: Index,
    rows: np.ndarray,
    config: RunConfig,
    ranks: DistributedContext,
    threads: int,
    watch: Callable[[Finished, list[int]], None] = lambda *_: None,
    examples: frozenset[int] = frozenset(),
) -> tuple[Samples, list[int]]:
    """Evaluate this rank's share of ``rows``.

    Args:
        net: from images to logits.
        index: of the images.
        rows: rows of the index to evaluate, the same on every rank.
        config: data, evaluation and runtime sections are read.
        ranks: this rank and its device.
        threads: for decoding.
        watch: called with what has been finished, and with rows that have been left out.
        examples: rows whose perturbations are wanted.

    Returns:
        This rank's results, and the rows of images that did not decode and were left out.
    """
    share = rows[ranks.rank :: ranks.world_size]
    size = images_at_once(config.evaluation.batch_size, ranks.device)
    data = attack_space.data_options(config.data, config.evaluation)
    view = attack_space.attack_view_of(net, config.data, config.evaluation, ranks.device)
    specs = evaluation_specs(index, share, data, size)
    loader = Loader(index, specs, data, ranks.device, size, threads)
    evaluator = Evaluator(view, config.evaluation, size, examples)
    parts, told = [Samples.empty(len(config.evaluation.fgs.measured))], 0
    for batch in itertools.chain(loader if len(share) else (), [None]):
        for found in evaluator.drain() if batch is None else evaluator.add_batch(batch):
            parts.append(found.samples)
            watch(found, loader.skipped[told:])
            told = len(loader.skipped)
    if told < len(loader.skipped):
        watch(Finished(parts[0], []), loader.skipped[told:])
    return Samples.concat(parts), loader.skipped


def measure_until_stopped(
    net: nn.Module,
    index: Index,
    rows: np.ndarray,
    config: RunConfig,
    ranks: DistributedContext,
    threads: int,
    keep: Callable[[Finished, list[int]], None],
    examples: frozenset[int],
    stop: StopRequest,
    monitor: Monitor,
) -> tuple[Samples, list[int]] | None:
    """`measure`, shown by the monitor's bar; None on every rank if one was asked to stop.

    Args:
        keep: called with what has been finished, and with rows that have been left out.
        stop: looked at after each batch.
        monitor: whose bar has been started.
    """

    def watch(found: Finished, skipped: list[int]) -> None:
        keep(found, skipped)
        monitor.advance(len(found.samples) * ranks.world_size)
        if stop.received:
            raise Stopped

    return ranks.run_unless_stopped(
        lambda: measure(net, index, rows, config, ranks, threads, watch, examples)
    )


def gather_samples(
    mine: Samples, skipped: list[int], rows: np.ndarray, ranks: DistributedContext
) -> tuple[Samples, list[int]]:
    """Join the ranks' results and check that each row was evaluated exactly once."""
    parts = ranks.gather((mine, skipped))
    samples = Samples.concat(part for part, _ in parts)
    left_out = sorted(row for _, more in parts for row in more)
    done = np.concatenate([samples.row, np.array(left_out, np.int64)])
    assert np.array_equal(np.sort(done), np.sort(rows)), "an image was not evaluated exactly once"
    return samples, left_out
