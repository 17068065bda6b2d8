"""FGS, the fast gradient sign attack: x + eps * sign(grad_x CE) (Goodfellow et al., ICLR 2015).

In: images, their labels and a forward pass of them. Out: which images are still classified
correctly at each eps, and the smallest eps that changes each image's class. eps is in units of the
space that is attacked. The margin of an image is its label's logit minus the highest other logit.
"""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.attacks.attack_state import SampleColumns
from pipeline.attacks.linearized_step import other_logits
from pipeline.attacks.loss_step import margin_loss
from pipeline.attacks.norms import expand_to_images, per_sample_norm
from pipeline.config import FgsConfig, FgsDirectionKind
from pipeline.models.attack_view import AttackView, ForwardPass

# The lattice of `smallest_eps`: logarithmic, in steps of 0.05 %, from a millionth to a thousand,
# which serves pixels from 0 to 1 and from 0 to 255.
SMALLEST_EPS = 2.0**-20
NUM_OCTAVES = 30
NUM_LATTICE_STEPS = 40960
NUM_BISECTIONS = math.ceil(math.log2(NUM_LATTICE_STEPS))
_NUM_FALSE_POSITION = 12  # trials by false position, before bisection


class FgsDirection(NamedTuple):
    """The direction of FGS for N images."""

    sign: Tensor  # (N, C, H, W), sign(grad_x CE); zeros where the gradient is not finite
    slope: Tensor  # (N,) approximately the decrease of the margin for each unit of eps


def fgs_direction(
    view: AttackView, forward: ForwardPass, labels: Tensor, kind: FgsDirectionKind = "exact"
) -> FgsDirection:
    """The direction of FGS.

    grad CE = (1 - p) grad `margin_loss`, where p is the label's probability, so the signs are
    equal. In fp32 1 - p is 0 where the net is sure, and the gradient of CE lacks the label's part.

    Args:
        view: the net.
        forward: its forward pass of the images; the graph is kept.
        labels: (N,) true classes.
        kind: exact: by the gradient of `margin_loss`. rounded: by that of CE.
    """
    if kind == "exact":
        with torch.enable_grad():
            loss = margin_loss(forward.logits, labels)
        gradient = view.logit_diff_gradient(forward, loss)
        slope = per_sample_norm(gradient, 1.0)
    else:  # without the factor on gradients in fp16
        with torch.enable_grad():
            loss = F.cross_entropy(forward.logits, labels, reduction="none")
        (gradient,) = torch.autograd.grad(loss.sum(), forward.inputs, retain_graph=True)
        slope = per_sample_norm(gradient, 1.0) / -torch.expm1(-loss.detach())  # over 1 - p
    return FgsDirection(torch.nan_to_num_(gradient.sign_(), 0.0), slope)


def measure_fgs(
    view: AttackView,
    images: Tensor,
    labels: Tensor,
    logits: Tensor,
    direction: FgsDirection | None,
    config: FgsConfig,
) -> tuple[Tensor, Tensor]:
    """Which of N images stay correct at each eps, and the smallest eps that each needs.

    Args:
        view: the net.
        images: (N, C, H, W).
        labels: (N,) true classes.
        logits: (N, K) of the images.
        direction: the result of `fgs_direction`; None: FGS is not used.
        config: the values of eps, and whether to search.

    Returns:
        Whether each image is classified correctly at each of E eps, (N, E) bool; and the result of
        `smallest_eps`, NaN if it is not searched for.
    """
    after_fgs = torch.zeros(len(images), 0, dtype=torch.bool)
    eps = torch.full_like(labels, torch.nan, dtype=torch.float64)
    if direction is not None and config.measured:
        after_fgs = correct_after_fgs(view, images, direction.sign, labels, config.measured)
    if direction is not None and config.search:
        eps = smallest_eps(view, images, direction, labels, logits)
    return after_fgs, eps


@torch.no_grad()
def correct_after_fgs(
    view: AttackView, images: Tensor, sign: Tensor, labels: Tensor, eps: list[float]
) -> Tensor:
    """Whether each image is classified correctly after FGS, (N, E) bool, at each of E eps."""
    points = (torch.add(images, sign, alpha=value) for value in eps)
    return torch.stack([_margins_at(view, x, labels) > 0 for x in points], dim=1)


@dataclass(frozen=True)
class _Brackets(SampleColumns):
    """Intervals of the lattice that contain the answers of A images.

    An image is classified correctly at the lower end and misclassified at the upper one.
    """

    rows: Tensor  # (A,) int64, positions in the batch
    images: Tensor  # (A, C, H, W)
    sign: Tensor  # (A, C, H, W)
    label: Tensor  # (A,) int64
    low: Tensor  # (A,) int64, position of the lower end
    high: Tensor  # (A,) int64, position of the upper end
    margin_low: Tensor  # (A,) float64, at the lower end, or a share of it by the Illinois rule
    margin_high: Tensor  # (A,) float64; minus infinity while it is unknown
    was_correct: Tensor  # (A,) bool, at the last trial
    guess: Tensor  # (A,) float64, eps for the next trial

    def next_position(self, bisect: bool) -> Tensor:
        """The position (A,) of the next trial, inside the interval."""
        position = (self.low + self.high) // 2 if bisect else _position(self.guess)
        return torch.minimum(torch.maximum(position, self.low + 1), self.high - 1)

    def narrow(self, position: Tensor, margin: Tensor) -> "_Brackets":
        """Intervals after a trial at ``position`` (A,) that gave ``margin`` (A,) float64."""
        correct = margin > 0
        # Illinois rule: an end that stays twice has half the weight, so that it moves in the end.
        factor = torch.where(correct == self.was_correct, 0.5, 1.0)
        margin_low = torch.where(correct, margin, self.margin_low * factor)
        margin_high = torch.where(correct, self.margin_high * factor, margin)
        low = torch.where(correct, position, self.low)
        high = torch.where(correct, self.high, position)
        eps_low, eps_high = _lattice(low), _lattice(high)
        # Where the line through both margins is zero; further out while the upper one is unknown.
        crossing = eps_low + (eps_high - eps_low) * margin_low / (margin_low - margin_high)
        return replace(
            self,
            low=low,
            high=high,
            margin_low=margin_low,
            margin_high=margin_high,
            was_correct=correct,
            guess=torch.where(margin_high.isfinite(), crossing, 2.0 * eps_low),
        )


@torch.no_grad()
def smallest_eps(
    view: AttackView, images: Tensor, direction: FgsDirection, labels: Tensor, logits: Tensor
) -> Tensor:
    """The smallest eps of the lattice at which FGS changes an image's class, (N,) float64.

    By bracketing, which assumes that an image once misclassified stays so as eps grows: it is
    misclassified at the result, and not at the value of the lattice below it. 0 for an image that
    is misclassified already, infinite for one that is correct at every eps of the lattice.

    The margin is nearly linear in eps, so false position with the Illinois rule, from a first guess
    by the gradient, needs about six forwards, and bisection sixteen.

    Args:
        view: the net.
        images: (N, C, H, W).
        direction: the result of `fgs_direction`.
        labels: (N,) true classes.
        logits: (N, K) of the images.
    """
    result = torch.zeros(len(images), dtype=torch.float64, device=images.device)
    brackets = _initial_brackets(images, direction, labels, margins(logits, labels).double())
    for trial in range(_NUM_FALSE_POSITION + NUM_BISECTIONS):
        if len(brackets.rows) == 0:
            break
        position = brackets.next_position(bisect=trial >= _NUM_FALSE_POSITION)
        eps = expand_to_images(_lattice(position)).float()
        points = brackets.images + eps * brackets.sign
        brackets = brackets.narrow(position, _margins_at(view, points, brackets.label).double())
        done = brackets.high - brackets.low <= 1
        smallest = _lattice(brackets.high).where(brackets.high < NUM_LATTICE_STEPS, torch.inf)
        result[brackets.rows] = smallest.where(done, 0.0)  # masks of rows would wait for the GPU
        brackets = brackets.take((~done).nonzero().squeeze(1))
    return result


def _initial_brackets(
    images: Tensor, direction: FgsDirection, labels: Tensor, margin: Tensor
) -> _Brackets:
    """The whole lattice for each image that is classified correctly."""
    rows = (margin > 0).nonzero().squeeze(1)
    return _Brackets(
        rows=rows,
        images=images[rows],
        sign=direction.sign[rows],
        label=labels[rows],
        low=torch.zeros_like(rows),
        high=torch.full_like(rows, NUM_LATTICE_STEPS),
        margin_low=margin[rows],
        margin_high=torch.full_like(margin[rows], -torch.inf),
        was_correct=torch.ones_like(rows, dtype=torch.bool),
        guess=margin[rows] / direction.slope[rows].double(),
    )


def _lattice(position: Tensor) -> Tensor:
    """eps (float64) at positions 0 to NUM_LATTICE_STEPS; all are exact in fp32."""
    octaves = position.double() * (NUM_OCTAVES / NUM_LATTICE_STEPS)
    return (SMALLEST_EPS * torch.exp2(octaves)).float().double()


def _position(eps: Tensor) -> Tensor:
    """The lattice's first position at or above eps; an arbitrary one where eps is not finite."""
    last = NUM_LATTICE_STEPS
    position = (torch.log2(eps / SMALLEST_EPS) * (last / NUM_OCTAVES)).ceil()
    return torch.nan_to_num(position, last // 2, last, 0).clamp(0, last).long()


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """The label's logit minus the highest other, (N,); -inf where a logit is not finite.

    An image with margin 0 counts as misclassified.
    """
    own = logits.gather(1, labels[:, None])
    other = other_logits(logits, labels).amax(dim=1)
    margin = own[:, 0] - other
    return margin.where(logits.isfinite().all(dim=1), -torch.inf)


def _margins_at(view: AttackView, points: Tensor, labels: Tensor) -> Tensor:
    return margins(view(view.clip_(points)), labels)
