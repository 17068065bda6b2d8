"""The Deep Defense regulariser as plainly as it can be written: the oracle of the gradient tests.

One image at a time, every candidate's gradient with a graph, nothing shared with the pipeline.
"""

import math

import torch
from torch import Tensor, nn

from pipeline.config import RegularizerConfig


def ratio(net: nn.Module, x: Tensor, label: int, config: RegularizerConfig) -> tuple[Tensor, bool]:
    """||dx|| / ||x|| of one image (1, C, H, W) with its graph, and whether it is in T."""
    attack = config.attack
    clean = net(x)[0]
    correct = int(clean.argmax()) == label
    number = min(attack.num_candidates, len(clean))
    others = [k for k in clean.topk(number).indices.tolist() if k != label]
    dx = torch.zeros_like(x)
    overshot = 1 + attack.overshoot
    onwards = overshot if attack.linearize_at == "overshot" else 1.0
    for _ in range(attack.max_iterations):
        start = onwards * dx
        point = x + (start if config.through_earlier_steps else start.detach())
        if not point.requires_grad:
            point.requires_grad_()
        f = net(point)[0]

        def towards(k: int, away: int, f: Tensor = f, point: Tensor = point) -> tuple:
            gap = f[k] - f[away]
            (w,) = torch.autograd.grad(gap, point, create_graph=True)
            if attack.step_direction == "loss_gradient":
                ascent = cross_entropy(f, label) if correct else -cross_entropy(f, label)
                (g,) = torch.autograd.grad(ascent, point, create_graph=True)
                n = steepest(g, attack.norm)
                return gap.abs(), gap.abs() / (w * n).sum() * n
            n = steepest(w, attack.norm)
            distance = gap.abs() / (w * n).sum()
            return distance, distance * n

        if correct:
            _, r = min((towards(k, label) for k in others), key=lambda pair: pair[0].item())
        else:
            _, r = towards(label, int(f.argmax()))
        dx = start + r
        now = int(net(x + overshot * dx)[0].argmax())
        if (now != label) if correct else (now == label):
            break
    return overshot * dx.norm(p=attack.norm) / x.norm(p=attack.norm), correct


def cross_entropy(logits: Tensor, label: int) -> Tensor:
    return nn.functional.cross_entropy(logits[None], torch.tensor([label]))


def steepest(w: Tensor, p: float) -> Tensor:
    """The direction of p-norm 1 along which <w, .> grows most."""
    if math.isinf(p):
        return w.sign()
    # Where w is 0 its power may have no derivative: 0 is taken for it.
    n = w.sign() * torch.where(w == 0, 1.0, w.abs()) ** (1 / (p - 1))
    return n / n.norm(p=p)


def loss(net: nn.Module, images: Tensor, labels: Tensor, config: RegularizerConfig) -> Tensor:
    """Mean cross-entropy plus lambda / N times the sum of R."""
    total = torch.zeros((), dtype=images.dtype)
    for x, label in zip(images, labels.tolist(), strict=True):
        value, correct = ratio(net, x[None], label, config)
        if correct or config.include_misclassified:
            total = total + term(value, correct, config)
    plain = nn.functional.cross_entropy(net(images), labels)
    return plain + config.lam * total / len(images)


def term(ratio: Tensor, correct: bool, config: RegularizerConfig) -> Tensor:
    """R of one image."""
    signed = -config.c * ratio if correct else config.d * ratio
    if config.form == "hinge":
        signed = torch.relu(config.c - ratio) if correct else config.c + ratio
    return {"exp": signed.exp(), "inverse": 1 / (1 - signed)}.get(config.form, signed)
