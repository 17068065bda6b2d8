"""The evaluator on images in memory, for tests of attacks."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from pipeline.attacks.references import References
from pipeline.config import AttackConfig, EvaluationConfig
from pipeline.data.loader import Batch
from pipeline.evaluation.evaluator import Evaluator, Finished
from pipeline.evaluation.samples import Samples
from pipeline.models.attack_view import AttackView
from tests.helpers import nets


def batches(images: Tensor, labels: Tensor, size: int) -> Iterator[Batch]:
    for begin in range(0, len(images), size):
        rows = np.arange(begin, min(begin + size, len(images)))
        yield Batch(images[rows], labels[rows], rows)


def finished(
    view: AttackView,
    config: EvaluationConfig,
    images: Tensor,
    size: int,
    references: Tensor | None = None,
) -> list[Finished]:
    """What the evaluator yields; labels are the classes that the net sees."""
    reference_images = None if references is None else References.of(view, [references])
    with torch.no_grad():
        labels = view(images).argmax(dim=1)
    evaluator = Evaluator(view, config, size, frozenset(range(len(images))), reference_images)
    parts = [f for batch in batches(images, labels, size) for f in evaluator.add_batch(batch)]
    return [*parts, *evaluator.drain()]


def measured(
    view: AttackView,
    attack: AttackConfig,
    images: Tensor,
    size: int = 20,
    references: Tensor | None = None,
) -> Samples:
    """Samples sorted by row."""
    config = EvaluationConfig(attack=attack)
    parts = finished(view, config, images, size, references)
    return Samples.concatenate(f.samples for f in parts)


def linear(space: str) -> tuple[AttackView, Tensor, Tensor, Tensor]:
    """A linear net, images, their classes, and their distances from the nearest boundary in L2."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 64, generator=generator)
    images = torch.randn(40, 1, 8, 8, generator=generator)
    bounds = None
    if space == "bounded":
        # Weights 8 times as large keep the logits: in nearly equal ones DDN's direction, which is
        # the cross-entropy's, is far from the normal of the nearest boundary.
        images, weight, bounds = (images / 8 + 0.5).clamp(0.2, 0.8), 8 * weight, (0.0, 1.0)
    bias = -weight @ images.mean(dim=0).flatten()
    logits = images.flatten(1) @ weight.T + bias
    labels = logits.argmax(dim=1)
    margins = logits.gather(1, labels[:, None]) - logits
    distance = margins / (weight[labels][:, None] - weight).norm(dim=2)
    distance = distance.scatter(1, labels[:, None], torch.inf).amin(dim=1)
    view = AttackView(nets.linear(weight, bias), bounds=bounds, min_batch_size=16)
    far = distance.argsort()[-20:]  # DDN starts at a distance of 1, and takes long to a tiny one
    return view, images[far], labels[far], distance[far]
