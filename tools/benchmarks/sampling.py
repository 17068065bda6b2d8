"""The regulariser on crops with their true labels (--labels true, --crops random).

Many crops are misclassified there, and the regulariser measures a random part of them. Each
gradient is compared with the same one of all samples.
"""

import argparse
import statistics
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common import (
    Row,
    device_of,
    in_turn,
    load_net,
    medians,
    regularizers,
    runtime_of,
    spread,
)
from benchmarks.counters import counted
from pipeline.models.attack_view import AttackView
from pipeline.models.precision import PRECISIONS
from pipeline.regularizer.sampling import uniform_numbers
from pipeline.training.objective import Objective, make_objective

NUM_DRAWS = 5
ALL = ", all samples"


def objectives(net: nn.Module, options: argparse.Namespace) -> dict[str, Objective]:
    """The objective with each gradient by name, also without sampling."""
    made: dict[str, Objective] = {}
    for name, config in regularizers(options.max_images).items():
        every = replace(config, min_probability=1.0)
        made[name + ALL] = make_objective(net, every, runtime=runtime_of(options))
        made[name] = make_objective(net, config, runtime=runtime_of(options))
    net.eval()  # making an objective has switched it to training mode
    return made


def compare(options: argparse.Namespace, images: Tensor, labels: Tensor) -> list[Row]:
    """One row for each variant: cost relative to plain; gradient relative to that of all samples,
    the worst of `NUM_DRAWS` draws.

    Args:
        options: the command line.
        images: (N, C, H, W), normalised.
        labels: (N,) their labels.
    """
    device, net = device_of(options), load_net(options)
    with torch.no_grad():
        predictions = AttackView(net, PRECISIONS[options.precision])(images).argmax(dim=1)
    print(f"{(predictions == labels).float().mean():.0%} of the crops are classified correctly")
    made = objectives(net, options)
    plain = next(iter(made.values()))
    ratio = plain(images, labels, use_methods=True).ratio[predictions == labels].mean()
    draws = [
        torch.from_numpy(uniform_numbers(0, step, len(images))).to(device)
        for step in range(NUM_DRAWS)
    ]
    for objective in made.values():
        objective.typical_ratio = float(ratio)

    def gradient_of(name: str, draw: int = 0) -> Tensor:
        objective = made.get(name, plain)
        objective.uniform = draws[draw]
        net.zero_grad()
        objective(images, labels, use_methods=name in made).loss.backward()
        return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])

    gradients: dict[str, list[Tensor]] = {}
    flops: dict[str, float] = {}
    for name in ("plain", *made):
        sampled = name in made and not name.endswith(ALL)
        measured = [
            counted(lambda name=name, draw=draw: gradient_of(name, draw))
            for draw in range(NUM_DRAWS if sampled else 1)
        ]
        flops[name] = statistics.mean(count for _, count in measured)
        clean = gradients["plain"][0] if name in made else 0.0
        gradients[name] = [gradient - clean for gradient, _ in measured]
    seconds = in_turn(
        {name: lambda name=name: gradient_of(name) for name in flops}, options.repeats, device
    )
    typical = medians(seconds)
    return [
        {
            "name": name,
            "time_ratio": typical[name] / typical["plain"],
            "flops_ratio": flops[name] / flops["plain"],
            **_agreement(gradients[name], gradients.get(name + ALL)),
            "spread": spread(seconds[name]),
            "seconds": typical[name],
        }
        for name in flops
    ]


def _agreement(gradients: list[Tensor], every: list[Tensor] | None) -> Row:
    """How near the gradients of several draws are to that of all samples; the worst."""
    if every is None:
        return {}
    norms = [(gradient.norm() / every[0].norm()).item() for gradient in gradients]
    return {
        "lowest_cosine": min(_cosine(gradient, every[0]) for gradient in gradients),
        "norm_ratio": max(norms, key=lambda ratio: abs(ratio - 1.0)),
    }


def _cosine(a: Tensor, b: Tensor) -> float:
    return F.cosine_similarity(a.double(), b.double(), dim=0).item()
