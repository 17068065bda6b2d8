"""The cost of the regulariser's gradient, relative to a plain step and the authors' algorithm."""

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import sampling
from benchmarks.common import (
    LAM,
    NUM_CANDIDATES,
    OVERSHOOT,
    TRAINING_ITERATIONS,
    C,
    Row,
    device_of,
    in_turn,
    load_crops,
    load_images,
    load_net,
    medians,
    regularizers,
    runtime_of,
    spread,
)
from benchmarks.counters import Flops
from pipeline.config import AttackConfig, RegularizerConfig, RuntimeConfig
from pipeline.errors import UserError
from pipeline.models.attack_view import AttackView
from pipeline.models.precision import PRECISIONS, autocast
from pipeline.training.memory_budget import peak_bytes
from pipeline.training.objective import make_objective

Loss = Callable[[Tensor, Tensor], Tensor]  # computes a loss from images and labels


def authors(net: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> Tensor:
    """The loss as the authors' code computes it, for images that are classified correctly.

    In every iteration it computes every candidate's gradient with a graph, for the whole batch,
    until the last image has flipped.
    """
    logits = net(images)
    order = logits.detach().topk(NUM_CANDIDATES, dim=1).indices
    others = order[order != labels[:, None]].view(len(images), -1)
    dx = torch.zeros_like(images)
    done = torch.zeros_like(labels, dtype=torch.bool)
    for _ in range(TRAINING_ITERATIONS):
        points = images + dx
        if not points.requires_grad:
            points.requires_grad_()
        f = net(points)
        logit_diffs = f.gather(1, others) - f.gather(1, labels[:, None])
        gradients = [
            torch.autograd.grad(diff.sum(), points, create_graph=True)[0]
            for diff in logit_diffs.unbind(1)
        ]
        w = torch.stack(gradients)
        norms = w.flatten(2).norm(dim=2)
        k = (logit_diffs.T.abs() / norms).argmin(dim=0)
        rows = torch.arange(len(images), device=images.device)
        r = (logit_diffs[rows, k].abs() / norms[k, rows] ** 2)[:, None, None, None] * w[k, rows]
        dx = dx + torch.where(done[:, None, None, None], 0.0, r)
        with torch.no_grad():
            done = done | (net(images + (1 + OVERSHOOT) * dx).argmax(dim=1) != labels)
        if done.all():
            break
    ratio = (1 + OVERSHOOT) * dx.flatten(1).norm(dim=1) / images.flatten(1).norm(dim=1)
    return F.cross_entropy(logits, labels) + LAM * torch.exp(-C * ratio).mean()


def variants(
    net: nn.Module, runtime: RuntimeConfig, max_images: int | None = None
) -> dict[str, Loss]:
    """Losses by name.

    ``exact`` visits every candidate in every iteration. Each of the next three adds one
    optimisation; ``unrolled`` has the default options. ``boundary`` and ``true distance`` are
    gradients of other distances: at DeepFool's end point, and after one projection.
    """

    ours = regularizers(max_images)

    def with_attack(**attack: Any) -> RegularizerConfig:
        return replace(ours["unrolled"], attack=AttackConfig(**attack))

    def loss_of(config: RegularizerConfig) -> Loss:
        objective = make_objective(net, config, runtime=runtime)
        return lambda images, labels: objective(images, labels, use_methods=True).loss

    def in_precision(loss: Callable[..., Tensor]) -> Loss:
        precision = PRECISIONS[runtime.precision]

        def logits_of(images: Tensor) -> Tensor:
            with autocast(images, precision):
                return net(images).float()

        return lambda images, labels: loss(logits_of, images, labels)

    losses = {
        "plain": in_precision(lambda f, images, labels: F.cross_entropy(f(images), labels)),
        "authors": in_precision(authors),
        "exact": loss_of(with_attack()),
        "fixed": loss_of(with_attack(target_class="fixed")),
        "fixed, pruned": loss_of(with_attack(target_class="fixed", candidate_search="pruned")),
        **{name: loss_of(config) for name, config in ours.items()},
    }
    net.eval()  # making an objective has switched it to training mode
    return losses


def benchmark(options: argparse.Namespace) -> list[Row]:
    """One row for each variant: cost relative to plain, gradient relative to the authors'.

    With ``--labels true``: `benchmarks.sampling`.
    """
    if options.max_images == "auto":
        raise UserError("--max-images auto is for step; give regularizer a number")
    if options.crops == "random" and options.labels != "true":
        raise UserError("--crops random is for --labels true")
    if options.labels == "true":
        return sampling.compare(options, *load_crops(options, default=48))
    device = device_of(options)
    net, images = load_net(options), load_images(options, default=16)
    with torch.no_grad():
        labels = AttackView(net, PRECISIONS[options.precision])(images).argmax(dim=1)
    losses = variants(net, runtime_of(options), options.max_images)
    too_large: set[str] = set()

    def step(name: str) -> None:
        net.zero_grad()
        losses[name](images, labels).backward()

    gradients, flops, peaks = {}, {}, {}
    for name in list(losses):
        try:
            step(name)  # also a warm-up
        except torch.OutOfMemoryError:
            too_large.add(name)
            del losses[name]
            torch.cuda.empty_cache()
            continue
        gradients[name] = _gradient(net) - (0 if name == "plain" else gradients["plain"])
        with Flops() as counter:
            step(name)
        flops[name] = counter.total
        net.zero_grad()
        peaks[name] = peak_bytes(lambda name=name: step(name), device)
    seconds = in_turn({n: lambda n=n: step(n) for n in losses}, options.repeats, device)
    typical = medians(seconds)
    # If the authors' algorithm does not fit in memory, compare with the exact gradient.
    expected = gradients["authors" if "authors" in gradients else "exact"]
    rows: list[Row] = [
        {
            "name": name,
            "time_ratio": typical[name] / typical["plain"],
            "flops_ratio": flops[name] / flops["plain"],
            "speedup_over_authors": typical["authors"] / typical[name]
            if "authors" in typical
            else None,
            "peak_memory_ratio": peaks[name] / peaks["plain"],
            "cosine": _cosine(gradients[name], expected) if name != "plain" else None,
            "norm_ratio": (gradients[name].norm() / expected.norm()).item()
            if name != "plain"
            else None,
            "spread": spread(seconds[name]),
            "seconds": typical[name],
        }
        for name in losses
    ]
    return rows + [{"name": f"{name} (out of memory)"} for name in too_large]


def _gradient(net: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


def _cosine(a: Tensor, b: Tensor) -> float:
    return F.cosine_similarity(a.double(), b.double(), dim=0).item()
