"""One iteration of DeepFool: the nearest of the linearised class boundaries, and the step to it.

In: a forward pass of points, the class to leave and the classes to consider. Out:
`LinearizedStep`.

Letters, as in the paper: f is the logit of a class minus that of the class to leave, w the gradient
of f by the image, p the norm that measures the step, q its dual exponent (1/p + 1/q = 1). The
boundary of a class is at the distance |f| / ||w||_q.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.attacks.norms import dual_exponent, expand_to_images, per_sample_norm, steepest_step
from pipeline.config import AttackConfig
from pipeline.models.attack_view import AttackView, ForwardPass

# Some of the samples of a batch: positions (B,) int64, or a slice of all.
Samples = Tensor | slice


@dataclass
class PointsToLinearize:
    """A forward pass of the points where A samples linearise.

    `release` returns it once, so that its graph is freed before another one is made.
    """

    forward: ForwardPass | None
    rows: Tensor  # (A,) int64, positions of the samples in the forward pass

    @classmethod
    def all_of(cls, forward: ForwardPass) -> "PointsToLinearize":
        """All samples of a forward pass."""
        return cls(forward, torch.arange(len(forward.inputs), device=forward.inputs.device))

    @property
    def logits(self) -> Tensor:
        """(A, K) of the samples, without a graph."""
        return self._present().logits.detach()[self.rows]

    def current_classes(self) -> Tensor:
        """(A,) int64, classes of highest logit at the points."""
        return self.logits.argmax(dim=1)

    def release(self) -> ForwardPass:
        """The forward pass, which this object no longer refers to."""
        forward, self.forward = self._present(), None
        return forward

    def _present(self) -> ForwardPass:
        if self.forward is None:
            raise RuntimeError("the forward pass has been released before")
        return self.forward


class Candidates(NamedTuple):
    """Classes that A samples may move to."""

    key: Tensor  # (A,) int64, which images of the batch the samples are
    source: Tensor  # (A,) int64, class to leave
    classes: Tensor  # (A, M) int64, classes to consider
    toward_label: Tensor  # (A,) bool, samples whose first class, their label, is the only one


class LinearizedStep(NamedTuple):
    """The step to the nearest of the linearised boundaries, for A samples; fields as in `Step`."""

    displacement: Tensor
    source: Tensor
    target: Tensor
    logit_diff: Tensor
    gradient_norm: Tensor
    num_queries: Tensor


def candidate_classes(logits: Tensor, labels: Tensor, number: int) -> Tensor:
    """The classes to move to: the ``number`` highest logits, in that order, without the label.

    Args:
        logits: (N, K) at the clean images; in T the label is the class of highest logit.
        labels: (N,) class of each image.
        number: number of classes, including the label (the paper's q); at most K are used.

    Returns:
        (N, min(number, K) - 1) classes.
    """
    top = logits.topk(min(number, logits.shape[1]), dim=1).indices
    # The label is among them for every sample that is classified correctly. If a tie has left it
    # out, the last candidate is dropped instead, so that all rows have the same length.
    is_label = top == labels[:, None]
    is_label[:, -1] |= ~is_label.any(dim=1)
    column = torch.arange(top.shape[1] - 1, device=top.device)
    after_label = column >= is_label.int().argmax(dim=1, keepdim=True)
    return top.gather(1, column + after_label)


@dataclass
class _Nearest:
    """The nearest boundary so far of A samples."""

    distance: Tensor  # (A,) |f| / ||w||_q; infinite before the first
    gradient_norm: Tensor  # (A,) ||w||_q
    position: Tensor  # (A,) int64, among the candidates
    largest_slope: Tensor  # (A,) the largest ||w||_q / weight distance of any candidate so far
    num_queries: Tensor  # (A,) int64, gradients so far
    gradient: Tensor | None = None  # (A, C, H, W), w

    @classmethod
    def none_yet(cls, like: Tensor) -> "_Nearest":
        """Without any boundary, for logit differences ``like`` (A,)."""
        distance = torch.full_like(like, torch.inf)
        position = torch.zeros_like(like, dtype=torch.int64)
        slope = torch.zeros_like(distance)
        return cls(distance, distance.clone(), position, slope, torch.zeros_like(position))

    def update(
        self, position: int, samples: Samples, distance: Tensor, gradient: Tensor, norm: Tensor
    ) -> None:
        """Enter the boundary of candidate ``position`` for some samples (B,).

        Masks choose values, not rows: rows of a mask would make the host wait for the GPU.
        """
        before = self.distance[samples]
        nearer = distance < before  # False for NaN, and for an infinite distance
        distance = distance.where(nearer, before)
        norm = norm.where(nearer, self.gradient_norm[samples])
        column = self.position[samples].masked_fill(nearer, position)
        if isinstance(samples, slice):
            self.distance, self.gradient_norm, self.position = distance, norm, column
        else:
            self.distance[samples] = distance
            self.gradient_norm[samples] = norm
            self.position[samples] = column
        if self.gradient is None:  # the first candidate is that of all samples
            self.gradient = gradient
        else:
            nearer = expand_to_images(nearer)
            self.gradient[samples] = gradient.where(nearer, self.gradient[samples])

    def step(self, candidates: Candidates, logit_diffs: Tensor, p: float) -> LinearizedStep:
        """The step (A, C, H, W) to the nearest boundary; zero where there is none."""
        if self.gradient is None:
            raise ValueError("a step needs at least one candidate class")
        displacement = steepest_step(self.gradient, self.gradient_norm, self.distance, p)
        displacement.masked_fill_(expand_to_images(self.distance.isinf()), 0.0)
        column = self.position[:, None]
        return LinearizedStep(
            displacement,
            candidates.source,
            candidates.classes.gather(1, column)[:, 0],
            logit_diffs.gather(1, column)[:, 0],
            self.gradient_norm,
            self.num_queries,
        )


def nearest_boundary(
    view: AttackView, points: PointsToLinearize, candidates: Candidates, config: AttackConfig
) -> LinearizedStep:
    """The step to the nearest of the linearised boundaries, |f| / ||w||_q away.

    Each round computes one more gradient w for every sample. With ``config.candidate_search``
    pruned, samples take their candidates in the order of |f| over the distance of the two classes'
    weights in the last layer, which ||w|| roughly follows. A sample stops when no candidate can be
    nearer unless its gradient is ``config.pruning_factor`` times larger than predicted from the
    largest ratio so far.

    Args:
        view: the net.
        points: where to linearise; released.
        candidates: the classes to leave and to consider.
        config: candidate_search, pruning_factor and norm are used.
    """
    pruned, p = config.candidate_search == "pruned", float(config.norm)
    forward, rows = points.release(), points.rows
    inputs = forward.inputs.detach()
    logits = forward.logits.detach()[rows]
    candidates, logit_diffs, spread = _in_visiting_order(view, logits, candidates, pruned)
    sizes = logit_diffs.abs()
    nearest = _Nearest.none_yet(logit_diffs[:, 0])
    # The samples of a round, and their positions in the forward pass.
    samples, forward_rows = slice(None), rows
    searching = torch.ones_like(candidates.toward_label)
    num_candidates = candidates.classes.shape[1]
    for m in range(num_candidates):
        if m == 1:
            searching = ~candidates.toward_label
        if m > 0 and pruned:
            reachable = nearest.largest_slope * spread[:, m] * nearest.distance
            searching &= sizes[:, m] < config.pruning_factor * reachable
        # The host waits for the number of samples; the last candidate is not worth it.
        if m == 1 or (pruned and 1 < m < num_candidates - 1):
            left = searching.nonzero().squeeze(1)
            if len(left) == 0:
                break
            # A new forward of a few costs less than gradients of many.
            if 2 * view.padded_size(len(left)) <= view.padded_size(len(forward.inputs)):
                samples, forward_rows = left, torch.arange(len(left), device=rows.device)
                forward = None  # frees its graph before the next is made
                forward = view.forward_with_grad(inputs[rows[left]], candidates.key[left])
        target, source = candidates.classes[samples, m], candidates.source[samples]
        gradient = _gradient(view, forward, forward_rows, target, source)
        norm = per_sample_norm(gradient, dual_exponent(p))
        # A sample that has stopped is among them if the pass is of all. It must not see more
        # candidates than in another batch.
        active = searching[samples]
        inactive = ~active
        distance = (sizes[samples, m] / norm).masked_fill(inactive, torch.inf)
        if view.precision == torch.float16:
            # A gradient beyond its range is infinite, which would put the boundary at distance 0.
            norm = norm.where(norm.isfinite(), torch.inf)
            distance = distance.masked_fill(norm.isinf(), torch.inf)
        nearest.update(m, samples, distance, gradient, norm)
        nearest.num_queries[samples] += active
        slope = (norm / spread[samples, m]).masked_fill(inactive, 0.0)
        nearest.largest_slope[samples] = torch.maximum(nearest.largest_slope[samples], slope)
    return nearest.step(candidates, logit_diffs, p)


def _in_visiting_order(
    view: AttackView, logits: Tensor, candidates: Candidates, pruned: bool
) -> tuple[Candidates, Tensor, Tensor]:
    """The candidates in the order in which samples take them; their logit differences and the
    distances of their weights, (A, M) each. Without pruning: as they are, and ones."""
    classes = candidates.classes
    logit_diffs = logit_differences(logits, candidates.source, classes)
    spread = torch.ones_like(logit_diffs)
    if pruned and classes.shape[1] > 1:
        spread = view.class_weight_distances(candidates.source, classes, logits.shape[1])
        order = (logit_diffs.abs() / spread).argsort(dim=1)
        logit_diffs, spread = logit_diffs.gather(1, order), spread.gather(1, order)
        candidates = candidates._replace(classes=classes.gather(1, order))
    return candidates, logit_diffs, spread


def _gradient(
    view: AttackView,
    forward: ForwardPass,
    forward_rows: Tensor,
    target: Tensor,
    source: Tensor,
) -> Tensor:
    """w (B, C, H, W) of classes (B,) for some rows (B,) of a forward pass.

    The gradient of f by the logits is written down: autograd's takes many small operations.
    """
    adjoint = forward.logits.new_zeros(len(forward_rows), forward.logits.shape[1])
    adjoint.scatter_(1, target[:, None], 1.0)
    # Added, since the classes are equal where a sample has arrived at its label.
    adjoint.scatter_(1, source[:, None], -1.0, reduce="add")
    if len(forward_rows) < len(forward.logits):
        adjoint = torch.zeros_like(forward.logits).index_copy_(0, forward_rows, adjoint)
    gradient = view.input_gradient(forward, adjoint)
    return gradient[forward_rows] if len(forward_rows) < len(gradient) else gradient


def other_logits(logits: Tensor, labels: Tensor) -> Tensor:
    """The logits (A, K) with -inf for the label's."""
    return logits.scatter(1, labels[:, None], -torch.inf)


def logit_differences(logits: Tensor, source: Tensor, classes: Tensor) -> Tensor:
    """Logits of the classes (A, M) minus that of the source (A,); (A, M)."""
    return logits.gather(1, classes) - logits.gather(1, source[:, None])
