"""FGS, the fast gradient sign attack: x + eps * sign(grad_x CE) (Goodfellow et al., ICLR 2015).

In: images, their labels and a graph of them. Out: who is still classified correctly at each eps,
and the smallest eps that each image needs. eps is in units of the space that is attacked.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.attacks.norms import expand_to_images, per_sample_norm
from pipeline.models.attack_view import AttackView, ForwardPass

# The lattice of `smallest_eps`: logarithmic, in steps of 0.05 %, from a millionth to a thousand:
# inputs of pixels from 0 to 255 are met, too.
SMALLEST, OCTAVES, STEPS = 2.0**-20, 30, 40960
HALVINGS = math.ceil(math.log2(STEPS))
_TRIALS = 12  # by false position, before halving


class FgsDirection(NamedTuple):
    """What FGS takes of N images."""

    sign: Tensor  # (N, C, H, W), sign(grad_x CE); zeros where the gradient is not finite
    slope: Tensor  # (N,) how fast the label's margin shrinks along it, roughly


def fgs_direction(graph: ForwardPass, labels: Tensor) -> FgsDirection:
    """The direction of FGS.

    Args:
        graph: of the images; it stays.
        labels: (N,) true classes.
    """
    with torch.enable_grad():
        loss = F.cross_entropy(graph.logits, labels, reduction="none")
    (gradient,) = torch.autograd.grad(loss.sum(), graph.inputs, retain_graph=True)
    # grad CE = (1 - p) times a mean over the other classes of grad (logit - label's logit).
    slope = per_sample_norm(gradient, 1.0) / -torch.expm1(-loss.detach())
    return FgsDirection(torch.nan_to_num_(gradient.sign_(), 0.0), slope)


@torch.no_grad()
def correct_after_fgs(
    view: AttackView, images: Tensor, sign: Tensor, labels: Tensor, eps: list[float]
) -> Tensor:
    """Whether each image is classified correctly after FGS, (N, E) bool, at each of E eps."""
    points = (torch.add(images, sign, alpha=value) for value in eps)
    return torch.stack([_margins(view, each, labels) > 0 for each in points], dim=1)


@torch.no_grad()
def smallest_eps(
    view: AttackView, images: Tensor, direction: FgsDirection, labels: Tensor, logits: Tensor
) -> Tensor:
    """The smallest eps of the lattice at which each image is found misclassified, (N,) float64.

    By bracketing, which supposes that an image once misclassified stays so as eps grows: the
    answer is an eps where it is misclassified, while at the one below it is not. 0 for an image
    that is misclassified already, infinite for one that no eps of the lattice changes.

    The margin of the label is nearly linear in eps, so false position (with the Illinois rule)
    from a first guess by the gradient needs about six forwards, where halving needs sixteen.

    Args:
        view: the net.
        images: (N, C, H, W).
        found: of `fgs_direction`.
        labels: (N,) true classes.
        logits: (N, K) of the images.
    """
    result = torch.zeros(len(images), dtype=torch.float64, device=images.device)
    margin = margins(logits, labels).double()
    rows = (margin > 0).nonzero().squeeze(1)
    x, sign, label = images[rows], direction.sign[rows], labels[rows]
    low, high = torch.zeros_like(label), torch.full_like(label, STEPS)
    at_low = margin[rows]
    at_high = torch.full_like(at_low, -torch.inf)  # unknown at the end of the lattice
    guess = at_low / direction.slope[rows].double()
    before = torch.ones_like(label).bool()  # whether the last trial was still right
    for trial in range(_TRIALS + HALVINGS):
        if len(rows) == 0:
            break
        place = ((low + high) // 2) if trial >= _TRIALS else _position(guess)
        place = torch.minimum(torch.maximum(place, low + 1), high - 1)
        tried = _margins(view, x + expand_to_images(_lattice(place)).float() * sign, label).double()
        right = tried > 0
        # Illinois: an end that stays twice counts half, so that it is not kept for ever.
        factor = torch.where(right == before, 0.5, 1.0)
        at_low, at_high = (
            torch.where(right, tried, at_low * factor),
            torch.where(right, at_high * factor, tried),
        )
        before = right
        low, high = torch.where(right, place, low), torch.where(right, high, place)
        done = high - low <= 1
        result[rows[done]] = _lattice(high[done]).where(high[done] < STEPS, torch.inf)
        guess = _crossing(_lattice(low), _lattice(high), at_low, at_high)
        left = (~done).nonzero().squeeze(1)
        rows, x, sign, label, before = (v[left] for v in (rows, x, sign, label, before))
        low, high, at_low, at_high, guess = (v[left] for v in (low, high, at_low, at_high, guess))
    return result


def _crossing(low: Tensor, high: Tensor, at_low: Tensor, at_high: Tensor) -> Tensor:
    """Where the line through two margins is zero; further out while the upper one is unknown."""
    between = low + (high - low) * at_low / (at_low - at_high)
    return torch.where(at_high.isfinite(), between, 2.0 * low)


def _lattice(position: Tensor) -> Tensor:
    """eps at positions 0 to STEPS; values that fp32 holds exactly, as float64."""
    return (SMALLEST * torch.exp2(position.double() * (OCTAVES / STEPS))).float().double()


def _position(eps: Tensor) -> Tensor:
    """The lattice's first position at or above eps; any where eps is not finite."""
    place = torch.log2(eps / SMALLEST) * (STEPS / OCTAVES)
    return torch.nan_to_num(place.ceil(), STEPS // 2, STEPS, 0).clamp(0, STEPS).long()


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """The label's logit minus the highest other, (N,); minus infinity where any is not finite.
    An image with margin 0 counts as misclassified."""
    own = logits.gather(1, labels[:, None])
    other = logits.scatter(1, labels[:, None], -torch.inf).amax(dim=1)
    margin = own[:, 0] - other
    return margin.where(logits.isfinite().all(dim=1), -torch.inf)


def _margins(view: AttackView, points: Tensor, labels: Tensor) -> Tensor:
    return margins(view(view.clip_(points)), labels)
