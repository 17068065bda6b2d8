"""The distance to the boundary at the end of one step along the gradient of the loss.

In: images, and the gradient u of the margin loss L by them (`pipeline.regularizer.loss_gradient`).
Out: the distance as a differentiable function of the parameters.

The step leads from x to where the linearised L has changed by f, the highest other logit minus that
of the label: r = -f u / ||u||^2 (p = 2). The class is not tested at its end. The net is linearised
there for the second time, and the distance to that boundary is measured
(`pipeline.regularizer.linearized_distance`). u comes from the backward pass of the cross-entropy,
so that all this costs one forward and one backward pass more than a plain step. Nets that need
passes of their own are in docs/gradient.md.
"""

import torch
from torch import Tensor

from pipeline.attacks.linearized_step import other_logits
from pipeline.attacks.norms import dual_exponent, per_sample_norm, steepest_step
from pipeline.models.attack_view import AttackView
from pipeline.regularizer.linearized_distance import (
    MeasuredDistance,
    Perturbed,
    linearized_distance,
)
from pipeline.regularizer.loss_gradient import LossGradient


def one_step(
    view: AttackView,
    images: Tensor,
    labels: Tensor,
    p: float,
    start: LossGradient,
    at_once: int | None = None,
) -> MeasuredDistance:
    """The distance to the boundary that is linearised after one step.

    Args:
        view: the net as the attack sees it.
        images: (N, C, H, W) fp32, without a graph.
        labels: (N,) class to leave, or to reach where the image is misclassified.
        p: the norm, in (1, inf].
        start: the gradient of the margin loss.
        at_once: largest number of images in the net at a time. Default: all.
    """
    label_logit = start.logits.gather(1, labels[:, None])[:, 0]
    other_logit = other_logits(start.logits, labels).amax(dim=1)
    norm = per_sample_norm(start.gradient, dual_exponent(p))
    norm = norm.where(norm > 0, torch.inf)
    delta = steepest_step(start.gradient, norm, (label_logit - other_logit) / norm, p)
    # An image without a usable gradient is linearised where it is.
    delta = delta.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    clean = start.logits.argmax(dim=1)
    perturbed = Perturbed(view, images, labels, delta, toward_label=clean != labels)
    distance, exists = linearized_distance(perturbed, p, at_once=at_once, constants=start.constants)
    return MeasuredDistance(distance, clean, exists, torch.ones_like(clean))
