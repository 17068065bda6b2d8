"""A lower bound of the distance to the decision boundary, for small piecewise linear nets.

In: a net and images. Out: `LowerBound`. No perturbation of a smaller norm changes the class.

The activation pattern of an image x (which ReLUs are on, which element each pool takes) holds in a
polytope around x, where the net is affine. Let a_j be the value of unit j minus the threshold of
its kink, and g_j its gradient by the image; c is the predicted class, w_k the gradient of logit
f_k; q is dual to p. Then (Croce, Andriushchenko, Hein, AISTATS 2019)

    radius    R = min_j |a_j| / ||g_j||_q              of the largest p-ball in the polytope
    nearest   d = min_k (f_c - f_k) / ||w_c - w_k||_q  the boundary of the affine function
    bound     L = min(R, d)

and d is the exact distance where d <= R. Elsewhere L is far too small, because the polytope around
an image is tiny. There the largest ball in which linear bounds of the logits keep the class is
taken, if it is larger and the net has few kinks (`pipeline.attacks.relaxed_bound`).

Gradients are computed forwards: the net with its pattern fixed is evaluated at unit vectors, some
at a time, for one image at a time. Of each g_j only the norm is kept, so the Jacobian is never in
memory.

Rounding. Norms are enlarged by `NORM_MARGIN`. Rounding that moves a kink changes the logits by no
more than their own rounding error, because the net is continuous. So it is enough that f_c - f_k
stays above the rounding error of the logits, taken as `VALUE_MARGIN` of the largest logit: L has
f_c - f_k less this margin in place of f_c - f_k.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.attacks.norms import dual_exponent, per_sample_norm, steepest_step
from pipeline.attacks.relaxed_bound import NORM_MARGIN, VALUE_MARGIN, RelaxedNet
from pipeline.models.attack_view import AttackView
from pipeline.models.linear_region import (
    Kinks,
    NotPiecewiseLinear,
    RecordActivationPattern,
    VisitKinks,
)
from pipeline.models.precision import upcast

MAX_JACOBIAN_ENTRIES = 200_000_000
"""Largest number of kinks times input values; the paper's CIFAR-10 ConvNet has 163 million."""

MAX_RELAXED_KINKS = 2_000
"""Largest number of kinks behind the first operation with kinks, for linear bounds: each is bounded
anew for every radius. The paper's MLP has 150."""

_VECTORS_AT_ONCE = 112  # fixed: the batch size decides which kernels run, and so the last bits


class NoLowerBound(Exception):
    """The bound is not defined for this net, or too costly; the message is the reason."""


@dataclass(frozen=True)
class LowerBound:
    """Distances of N images in the p-norm, in the dtype of the logits, rounded down."""

    radius: Tensor  # (N,) R; inf where the net is affine
    nearest: Tensor  # (N,) d; inf where no class can be reached in the affine function
    bound: Tensor  # (N,) min(R, d), less a margin for the rounding of the logits; or a larger one
    exact: Tensor  # (N,) bool, whether d is at most R, so that it is the distance


@torch.no_grad()
def lower_bound(view: AttackView, images: Tensor, p: float = 2.0) -> LowerBound:
    """Lower bounds of the p-norm of perturbations that change the predicted class.

    Images are processed one at a time, so results do not depend on the batch. The cost of an image
    is one forward pass for each of its values; for linear bounds also one gradient for each kink of
    the first operation, and ten for each later one.

    Args:
        view: the net, in fp32 or fp64. Bounds on pixel values can only increase the distance, so
            the bound holds with them too; ``exact`` then needs a nearest point within them.
        images: (N, C, H, W), in the network's input space.
        p: of the norm, in (1, inf].

    Raises:
        NoLowerBound: as `require_lower_bound`.
    """
    if len(images):
        require_lower_bound(view, upcast(images.detach()))
    return lower_bound_unchecked(view, images, p)


@torch.no_grad()
def lower_bound_unchecked(view: AttackView, images: Tensor, p: float) -> LowerBound:
    """As `lower_bound`, for a net that has passed `require_lower_bound` with another image.

    Where an image does not pass, its bound is 0; so its result does not depend on its batch.
    """
    images = upcast(images.detach())
    if len(images) == 0:
        empty = images.new_empty(0)
        return LowerBound(empty, empty, empty, empty.bool())
    columns = zip(*(_bound_of_image(view, images, n, p) for n in range(len(images))), strict=True)
    radius, nearest, bound, exact = (torch.stack(column) for column in columns)
    for values in (radius, nearest, bound):
        values.nan_to_num_(0.0, torch.inf)  # where logits overflow, nothing is known
    return LowerBound(radius, nearest, bound, exact)


def why_not_computable(view: AttackView, shape: tuple[int, int, int], device: torch.device) -> str:
    """Why `lower_bound` cannot be computed for a net, in one line; empty if it can.

    Args:
        view: the net.
        shape: (C, H, W) of an image.
        device: the device of the net.
    """
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, *shape, generator=generator).to(device)
    try:
        require_lower_bound(view, image)
    except NoLowerBound as error:
        return str(error)
    return ""


@torch.no_grad()
def require_lower_bound(view: AttackView, images: Tensor) -> None:
    """Raise `NoLowerBound` unless `lower_bound` can be computed; tries the first image.

    Refused are nets in half precision or TF32, nets that are not known to be piecewise linear,
    those with more than `MAX_JACOBIAN_ENTRIES`, and those that read the input of an activation
    after its in-place change.
    """
    tf32 = images.is_cuda and torch.backends.cudnn.allow_tf32
    if tf32 or view.precision in (torch.bfloat16, torch.float16):
        raise NoLowerBound("a lower bound needs a net that is evaluated in fp32")
    try:
        net = _NetWithFixedPattern(view, images, 0)
    except NotPiecewiseLinear as error:
        raise NoLowerBound(f"the net is not known to be piecewise linear: {error}") from None
    num_kinks, num_values = sum(len(gaps) for gaps in net.gaps), images[0].numel()
    if num_kinks * num_values > MAX_JACOBIAN_ENTRIES:
        raise NoLowerBound(
            f"a lower bound is too costly for this net: {num_kinks} kinks times {num_values} "
            f"input values is above {MAX_JACOBIAN_ENTRIES}"
        )


class _NetWithFixedPattern:
    """The net with the activation pattern of one image."""

    def __init__(self, view: AttackView, images: Tensor, number: int) -> None:
        self.view = view.with_min_batch_size(1)  # padding would be visited too
        self.image = images[number : number + 1]  # (1, C, H, W)
        self.row = torch.full((1,), number, device=images.device)
        with RecordActivationPattern(constants=view.net.buffers()) as record:
            self.logits = self.view(self.image, self.row)[0]  # (K,)
        self._pattern = record.pattern
        self.gaps: list[Tensor] = []  # of each operation, (M,) distances of values to thresholds
        held = self._visit(self.image, lambda kinks: self.gaps.append(_gaps(kinks)))[0]
        tolerance = 1e-3 * held.abs().amax()
        if held.isfinite().all() and (held - self.logits).abs().amax() > tolerance:
            raise NoLowerBound("the net uses the input of an activation after an in-place change")

    @property
    def can_be_relaxed(self) -> bool:
        """Whether linear bounds of its values are cheap."""
        return sum(len(gaps) for gaps in self.gaps[1:]) <= MAX_RELAXED_KINKS

    def _visit(self, inputs: Tensor, visit: Callable[[Kinks], None]) -> Tensor:
        with VisitKinks(self._pattern, visit):
            return self.view(inputs, self.row.expand(len(inputs)))

    def jacobian(self, q: float) -> tuple[list[Tensor], Tensor]:
        """q-norms of the kinks' gradients, (M,) for each operation, and the logits' (D, K)."""
        norms: list[Tensor] = []
        logits: list[Tensor] = []
        # Powers of two; so long that what does not depend on the input is lost in rounding.
        length = 2.0 ** (20 + max(0, math.frexp(float(self.image.abs().max()))[1]))
        for inputs in _unit_vectors(self.image, length):
            parts: list[Tensor] = []

            def visit(kinks: Kinks, parts: list[Tensor] = parts) -> None:
                parts.append(_column_norms(_slopes(kinks.values, length), q))

            logits.append(_slopes(self._visit(inputs, visit), length))
            if norms:
                both = zip(norms, parts, strict=True)
                parts = [_column_norms(torch.stack(pair), q) for pair in both]
            norms = parts
        return norms, torch.cat(logits)


def _bound_of_image(
    view: AttackView, images: Tensor, number: int, p: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The fields of `LowerBound`, of one image; scalars. Zeros where nothing is known."""
    q = dual_exponent(p)
    try:
        net = _NetWithFixedPattern(view, images, number)
    except (NoLowerBound, NotPiecewiseLinear):
        zero = images.new_zeros(())
        return zero, zero, zero, zero.bool()
    norms, gradients = net.jacobian(q)
    eps = torch.finfo(gradients.dtype).eps
    enlarge = 1.0 + NORM_MARGIN * eps
    infinite = net.logits.new_full((1,), torch.inf)  # for a net without kinks
    distances = [_ratio(gap, norm) for gap, norm in zip(net.gaps, norms, strict=True)]
    radius = torch.cat([infinite, *distances]).amin() / enlarge

    clean = net.logits.argmax()
    differences = net.logits[clean] - net.logits  # (K,)
    w = gradients - gradients[:, clean, None]  # (D, K), towards each class
    w_norms = _column_norms(w, q)  # 0 for the predicted class
    distance, target = _ratio(differences, w_norms).min(dim=0)
    margin = VALUE_MARGIN * eps * net.logits.abs().amax()
    certain = _ratio((differences - margin).clamp(min=0.0), w_norms).amin() / enlarge
    bound = radius.minimum(certain)
    exact = distance <= radius
    if not exact and distance.isfinite() and net.can_be_relaxed:
        relaxed = RelaxedNet(net.view, net.image, net.row, q)
        bound = bound.clamp(min=relaxed.certified_radius(float(distance)))
    if net.view.bounds is not None and exact:
        direction = w[:, target].reshape(net.image.shape)
        step = steepest_step(direction, w_norms[target][None], distance[None], p)
        exact = (net.view.clip_(net.image + step) == net.image + step).all()
    return radius, distance / enlarge, bound, exact


def _ratio(gap: Tensor, norm: Tensor) -> Tensor:
    """gap / norm; inf where the gradient vanishes, so that the value cannot change."""
    return torch.where(norm == 0, torch.inf, gap / norm)


def _gaps(kinks: Kinks) -> Tensor:
    """(M,) distances of the values of the first input to the nearest threshold."""
    return torch.stack([(kinks.values[0] - limit).abs() for limit in kinks.thresholds]).amin(dim=0)


def _slopes(values: Tensor, length: float) -> Tensor:
    """(B, M) derivatives of values (B + 1, M) at 0 and at B vectors of a length."""
    return (values[1:] - values[:1]) / length


def _column_norms(values: Tensor, q: float) -> Tensor:
    """q-norms (M,) of the columns of values (B, M)."""
    return per_sample_norm(values.t()[:, None, None, :], q)


def _unit_vectors(image: Tensor, length: float) -> Iterator[Tensor]:
    """0 and some unit vectors times a length, (B + 1, C, H, W), until all were there."""
    num_values = image.numel()
    for first in range(0, num_values, _VECTORS_AT_ONCE):
        size = min(_VECTORS_AT_ONCE, num_values - first)
        vectors = image.new_zeros(size + 1, num_values)
        vectors[1:].diagonal(first).fill_(length)
        yield vectors.view(-1, *image.shape[1:])
