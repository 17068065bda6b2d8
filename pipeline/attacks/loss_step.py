"""One iteration along the gradient of the loss, as far as the linearised boundary of one class.

In: a forward pass of points, the class to leave and the classes to consider. Out:
`LinearizedStep`. Letters as in `pipeline.attacks.linearized_step`.
"""

import torch
from torch import Tensor

from pipeline.attacks.linearized_step import (
    Candidates,
    LinearizedStep,
    PointsToLinearize,
    logit_differences,
    other_logits,
)
from pipeline.attacks.norms import dual_exponent, expand_to_images, per_sample_norm, steepest_step
from pipeline.config import AttackConfig
from pipeline.models.attack_view import AttackView, ForwardPass


def loss_gradient_step(
    view: AttackView, points: PointsToLinearize, candidates: Candidates, config: AttackConfig
) -> LinearizedStep:
    """The step along the gradient of the cross-entropy, as far as the linearised boundary of the
    candidate of highest logit: FGS for p = inf, a normalised gradient step for p = 2.

    Args:
        view: the net.
        points: where to linearise; released.
        candidates: the classes to leave and to consider; the cross-entropy of samples that move
            toward their label falls, that of others rises.
        config: the norm is used.
    """
    forward = points.release()
    logits = forward.logits.detach()[points.rows]
    logit_diffs = logit_differences(logits, candidates.source, candidates.classes)
    highest = logit_diffs.abs().argmin(dim=1, keepdim=True)
    target = candidates._replace(classes=candidates.classes.gather(1, highest))
    return loss_step(view, forward, target, float(config.norm), rows=points.rows)


def loss_step(
    view: AttackView,
    forward: ForwardPass,
    candidates: Candidates,
    p: float,
    *,
    rows: Tensor | None = None,
    create_graph: bool = False,
) -> LinearizedStep:
    """`loss_gradient_step` to one candidate each; differentiable with ``create_graph``.

    ``gradient_norm`` is <w, n>, with n the direction of unit p-norm; infinite where f does not grow
    along it. n follows the gradient of `margin_loss`.

    Args:
        view: the net.
        forward: where to linearise.
        candidates: with classes (A, 1).
        p: norm of the step.
        rows: (A,) positions of the samples in the forward pass. Default: all, in order.
        create_graph: make the step differentiable by the parameters and the inputs.
    """
    source, target = candidates.source, candidates.classes[:, 0]
    with torch.enable_grad():
        logits = forward.logits if rows is None else forward.logits[rows]
        loss = margin_loss(logits, torch.where(candidates.toward_label, target, source))
        rising = torch.where(candidates.toward_label, -loss, loss)
        logit_diff = logit_differences(logits, source, candidates.classes)[:, 0]
    w = view.logit_diff_gradient(forward, logit_diff, create_graph)
    steepest = view.logit_diff_gradient(forward, rising, create_graph)
    if rows is not None:
        w, steepest = w[rows], steepest[rows]
    dual_norm = per_sample_norm(steepest, dual_exponent(p))
    dual_norm = dual_norm.where(dual_norm > 0, torch.inf)
    unit = steepest_step(steepest, dual_norm, torch.ones_like(dual_norm), p)
    slope = (w * unit).flatten(1).sum(dim=1)
    norm = slope.where(slope > 0, torch.inf)
    displacement = unit * expand_to_images(logit_diff.abs() / norm)
    return LinearizedStep(
        displacement,
        source,
        target,
        logit_diff.detach(),
        norm.detach(),
        num_queries=torch.full_like(target, 2),  # of f and of the loss
    )


def margin_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """(A,) log sum exp of the other logits (A, K) minus that of the label: log(exp(CE) - 1).

    Its gradient has the direction of the cross-entropy's, which vanishes in fp32 where the net is
    sure.
    """
    others = other_logits(logits, labels).logsumexp(dim=1)
    return others - logits.gather(1, labels[:, None])[:, 0]
