"""Evaluates batches of images, with pools of unfinished images.

In: batches of images. Out: `Samples` of those that have finished. Every image starts with one clean
forward pass; images that need more iterations of an attack wait in a pool until they fill a batch.
"""

import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from pipeline.attacks import chain
from pipeline.attacks.attack_state import AttackState, IterationResult, split_rows
from pipeline.attacks.deepfool import deepfool_iteration, initial_state, perturbation
from pipeline.attacks.fgs import fgs_direction, measure_fgs
from pipeline.attacks.linearized_step import PointsToLinearize
from pipeline.attacks.lower_bound import lower_bound_unchecked
from pipeline.attacks.norms import per_sample_norm
from pipeline.attacks.references import References
from pipeline.attacks.search import SearchState
from pipeline.config import EvaluationConfig
from pipeline.data.loader import Batch
from pipeline.errors import UserError
from pipeline.evaluation.image_hash import hash_images
from pipeline.evaluation.samples import Example, Samples
from pipeline.evaluation.search_pools import SearchPools
from pipeline.models.attack_view import AttackView
from pipeline.models.precision import upcast
from pipeline.runtime import allocator

Result = TypeVar("Result")


class Finished(NamedTuple):
    """Results of images that have finished."""

    samples: Samples
    examples: list[Example]


class _FirstPass(NamedTuple):
    """A part of a batch after its clean forward pass and first iteration."""

    samples: Samples  # all images of the part; the columns of the perturbation are not filled yet
    reference: Tensor  # (N,) int64, as in `SearchState`, of all images of the part
    iteration: IterationResult | None  # of DeepFool; None: the attack does not start with it
    search: SearchState | None  # without DeepFool: all images of the part, before the attack


class Evaluator:
    """Takes batches, and yields samples as they finish.

    Unfinished images of all batches are in one pool for each stage of the attack, so the net gets
    full batches in every iteration. When memory runs out, the batch size is halved.
    """

    def __init__(
        self,
        view: AttackView,
        config: EvaluationConfig,
        batch_size: int,
        examples: frozenset[int] = frozenset(),
        references: References | None = None,
    ) -> None:
        """Start with empty pools.

        Args:
            view: the net.
            config: the options of the evaluation.
            batch_size: number of images per forward pass.
            examples: rows whose perturbations are returned as well.
            references: images for the upper bound; None: neither it nor the cosine is measured.
        """
        self.view, self.config, self.batch_size = view, config, batch_size
        self._attack = config.attack
        self._example_rows = examples
        self._references = references
        self._num_methods = len(self._attack.methods)
        # Images in DeepFool, and their references.
        self._deepfool_pool: list[tuple[AttackState, Tensor]] = []
        self._pools = SearchPools(chain.stages_of(self._attack, references))
        self._unfinished = self.no_samples()

    def no_samples(self) -> Samples:
        """Results of no image, with the columns of this evaluation."""
        return Samples.empty(len(self.config.fgs.measured), self._attack.num_distances)

    def add_batch(self, batch: Batch) -> Iterator[Finished]:
        """Add a batch; yields the images that finish, of this batch or of earlier ones."""
        first_passes = self._in_parts(len(batch.rows), lambda part: self._first_pass(batch, part))
        for first in first_passes:
            self._unfinished = Samples.concatenate([self._unfinished, first.samples])
            if first.search is not None:
                yield from self._finish(self._pools.enter(first.search))
            if first.iteration is not None:
                yield from self._split_finished(first.iteration, first.reference)
        yield from self._advance(draining=False)

    def drain(self) -> Iterator[Finished]:
        """Finish the images that are left in the pools."""
        yield from self._advance(draining=True)

    def _advance(self, draining: bool) -> Iterator[Finished]:
        """Advance pools that fill a batch, until none does; or all of them, until they are empty.

        Later stages come first, so that images leave early; at the end the earlier ones do, so that
        images gather in the later ones.
        """
        while True:
            waiting = sum(len(state) for state, _ in self._deepfool_pool)
            if draining:
                stage, deepfool_is_due = self._pools.earliest(), waiting > 0
            else:
                stage = self._pools.fullest(self.batch_size)
                deepfool_is_due = stage is None and waiting >= self.batch_size
            if deepfool_is_due:
                yield from self._advance_deepfool()
            elif stage is not None:
                yield from self._advance_stage(stage)
            else:
                return

    def _first_pass(self, batch: Batch, part: slice) -> _FirstPass:
        """The clean forward pass, what is computed from it, and DeepFool's first iteration."""
        images, labels = upcast(batch.images[part]), batch.labels[part]
        forward = self.view.forward_with_grad(images)
        logits = forward.logits.detach()
        fgs, direction = self.config.fgs, None
        if fgs.enabled:
            direction = fgs_direction(self.view, forward, labels, fgs.direction)
        key = torch.from_numpy(batch.rows[part]).to(images.device, non_blocking=True)
        state = initial_state(images, logits, self._attack, key=key)
        reference = torch.full_like(key, -1)
        if self._references is not None:
            reference = self._references.nearest(images, state.label, float(self._attack.norm))
        search, iteration = None, None
        points = PointsToLinearize(forward, torch.arange(len(images), device=images.device))
        del forward  # only `points` refers to it now, and frees its graph early
        if chain.starts_with_deepfool(self._attack):
            iteration = deepfool_iteration(self.view, state, self._attack, points)
        else:
            search = SearchState.before_attack(
                key, images, state.label, reference, self._num_methods
            )
        del points
        after_fgs, fgs_eps = measure_fgs(
            self.view, images, labels, logits, direction, self.config.fgs
        )
        bound, bound_exact = self._lower_bounds(images)
        finite = logits.isfinite().all(dim=1)
        rank = (logits > logits.gather(1, labels[:, None])).sum(dim=1)
        columns = _to_numpy(
            label=labels,
            prediction=torch.where(finite, state.label, -1),
            label_rank=torch.where(finite, rank, logits.shape[1]),
            image_norm=per_sample_norm(images.double(), float(self._attack.norm)),
            fgs_eps=fgs_eps,
            image_hash=hash_images(images),
            lower_bound=bound,
            bound_exact=bound_exact,
        )
        columns |= {"row": batch.rows[part], "fgs_correct": after_fgs.cpu().numpy()}
        samples = Samples.from_dict(columns, after_fgs.shape[1], self._attack.num_distances)
        return _FirstPass(samples, reference, iteration, search)

    def _lower_bounds(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Lower bounds of distances (N,), NaN if they are not measured; whether they are exact."""
        if not self.config.lower_bound:
            return images.new_full((len(images),), torch.nan), images.new_zeros(len(images))
        bounds = lower_bound_unchecked(self.view, images, float(self._attack.norm))
        return bounds.bound, bounds.exact

    def _advance_deepfool(self) -> Iterator[Finished]:
        """One iteration of DeepFool for a batch of the images that have waited longest."""
        pool = AttackState.concatenate([state for state, _ in self._deepfool_pool])
        references = torch.cat([reference for _, reference in self._deepfool_pool])
        first, rest = slice(self.batch_size), slice(self.batch_size, None)
        self._deepfool_pool = []
        if len(pool) > self.batch_size:
            self._deepfool_pool = [(pool.take(rest), references[rest])]
        state, reference = pool.take(first), references[first]
        results = self._in_parts(
            len(state),
            lambda part: (
                deepfool_iteration(self.view, state.take(part), self._attack),
                reference[part],
            ),
        )
        for iteration, reference_part in results:
            yield from self._split_finished(iteration, reference_part)

    def _advance_stage(self, stage: int) -> Iterator[Finished]:
        """One iteration of a stage for a batch of the images that have waited longest."""
        state = self._pools.take(stage, self.batch_size)
        results = self._in_parts(
            len(state), lambda part: self._pools.advance(self.view, state.take(part), stage)
        )
        for advanced in results:
            yield from self._finish(self._pools.put_back(advanced, stage))

    def _split_finished(self, done: IterationResult, reference: Tensor) -> Iterator[Finished]:
        """Move the images that have finished DeepFool on; the others go back into its pool."""
        last = done.state.iteration >= self._attack.max_iterations
        ended = done.ended | last
        rows, unfinished = split_rows(ended)
        if len(unfinished):
            self._deepfool_pool.append((done.state.take(unfinished), reference[unfinished]))
        if len(rows):
            done = done.take(rows)
            delta = perturbation(self.view, done.state, self._attack)
            after = SearchState.after_deepfool(
                done, delta, reference[rows], self._num_methods, float(self._attack.norm)
            )
            yield from self._finish(self._pools.enter(after))

    def _finish(self, parts: list[SearchState]) -> Iterator[Finished]:
        """The results of images that have left the last stage."""
        for state in parts:
            columns = _to_numpy(
                row=state.key,
                adversarial=state.smallest_class,
                steps=state.num_steps,
                flipped=state.flipped,
                stuck=state.no_gradient & ~state.flipped,
                perturbation_norm=state.smallest_norm,
                queries=state.num_queries,
                cosine=state.cosine,
                upper_bound=state.upper_bound,
                winner=state.winner,
            )
            if self._attack.num_distances:
                columns["distances"] = state.distances.cpu().numpy()
            finished = np.isin(self._unfinished.row, columns["row"])
            order = np.argsort(columns["row"])  # _unfinished is sorted by row
            ordered = {name: column[order] for name, column in columns.items()}
            samples = self._unfinished.take(finished).with_columns(ordered)
            self._unfinished = self._unfinished.take(~finished)
            yield Finished(samples, self._examples(state, samples))

    def _examples(self, state: SearchState, samples: Samples) -> list[Example]:
        if self._example_rows.isdisjoint(samples.row.tolist()):
            return []
        examples = []
        for position, row in enumerate(state.key.tolist()):
            if row in self._example_rows:
                at = int(np.searchsorted(samples.row, row))
                example = Example(
                    row,
                    image=state.images[position].float().cpu().numpy(),
                    delta=state.smallest[position].float().cpu().numpy(),
                    before=int(samples.prediction[at]),
                    after=int(samples.adversarial[at]),
                )
                examples.append(example)
        return examples

    def _in_parts(self, total: int, work: Callable[[slice], Result]) -> Iterator[Result]:
        """Apply ``work`` to consecutive parts, which become smaller when memory runs out."""
        begin = 0
        while begin < total:
            part = slice(begin, min(begin + self.batch_size, total))
            try:
                result = work(part)
            except (RuntimeError, MemoryError) as error:
                if not allocator.is_out_of_memory(error):
                    raise
                result = None  # leave the block, so that the traceback frees its tensors
            if result is None:
                self._halve(part.stop - part.start)
                continue
            begin = part.stop
            yield result

    def _halve(self, tried: int) -> None:
        """Halve the batch size.

        Args:
            tried: the number of images that did not fit in memory.

        Raises:
            UserError: one image does not fit.
        """
        if tried == 1:
            raise UserError(
                "out of memory with one image in the net; use a smaller net or data.crop_size, or "
                "a machine with more memory"
            )
        self.batch_size = tried // 2
        self.view = self.view.with_min_batch_size(min(self.view.min_batch_size, self.batch_size))
        allocator.release_cached_memory()
        print(
            f"warning: {tried} images at once do not fit in memory; continuing with "
            f"{self.batch_size} (evaluation.batch_size)",
            file=sys.stderr,
            flush=True,
        )


def _to_numpy(**columns: Tensor) -> dict[str, np.ndarray]:
    """Columns (N,) as float64, copied from the device in one transfer."""
    values = torch.stack([column.double() for column in columns.values()]).cpu().numpy()
    return dict(zip(columns, values, strict=True))
