"""The distance to the nearest boundary point, and its exact gradient there.

In: images. Out: the distance as a differentiable function of the parameters. DeepFool reaches a
boundary; a few projections move the end of the perturbation towards the nearest boundary point
(`pipeline.attacks.projection`); there the net is linearised once more
(`pipeline.regularizer.linearized_distance`).
"""

from torch import Tensor

from pipeline.attacks.deepfool import AttackOptions, deepfool
from pipeline.attacks.linearized_step import PointsToLinearize
from pipeline.config import AttackConfig
from pipeline.models.attack_view import AttackView
from pipeline.regularizer.linearized_distance import (
    MeasuredDistance,
    Perturbed,
    linearized_distance,
)


def true_distance(
    view: AttackView,
    images: Tensor,
    labels: Tensor,
    config: AttackConfig,
    *,
    points: PointsToLinearize | None = None,
    at_once: int | None = None,
) -> MeasuredDistance:
    """The distance to the nearest boundary point.

    Of a misclassified image it is the distance to the boundary of its label and one other class; if
    a third class lies between them, the label is farther away.

    Args:
        view: the net as the attack sees it.
        images: (N, C, H, W) fp32, without a graph.
        labels: (N,) class to leave, or to reach where the image is misclassified.
        config: of the attack.
        points: the images in a forward pass, if there is one; released early.
        at_once: largest number of images in the net at a time. Default: all.
    """
    options = AttackOptions(at_once=at_once)
    start = deepfool(view, images, config, labels, points=points, options=options)
    perturbed = Perturbed(view, images, labels, start.delta, start.clean != labels)
    distance, _ = linearized_distance(
        perturbed,
        float(config.norm),
        num_projections=config.max_projections,
        at_once=at_once,
    )
    return MeasuredDistance(distance, start.clean, start.flipped, start.iterations)
