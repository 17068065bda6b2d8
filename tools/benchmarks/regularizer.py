"""The cost of the regulariser's gradient, beside a plain step and the authors' algorithm."""

import argparse
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.config import AttackConfig, RegularizerConfig, RuntimeConfig
from pipeline.errors import UserError
from pipeline.models.attack_view import AttackView, autocast
from pipeline.training.memory_budget import peak_bytes
from pipeline.training.objective import PRECISIONS, make_objective

from .common import Row, device_of, in_turn, load_images, load_net, medians, runtime_of, spread
from .counters import Flops

Q, ITERATIONS, OVERSHOOT, LAM, C = 10, 5, 0.02, 5.0, 500.0


def authors(net: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> Tensor:
    """The loss as the authors' code computes it: every candidate's gradient with a graph, in
    every iteration, for the whole batch until its last sample is done. Samples of T only."""
    logits = net(images)
    order = logits.detach().topk(Q, dim=1).indices
    others = order[order != labels[:, None]].view(len(images), -1)
    dx = torch.zeros_like(images)
    done = torch.zeros_like(labels, dtype=torch.bool)
    for _ in range(ITERATIONS):
        points = images + dx
        if not points.requires_grad:
            points.requires_grad_()
        f = net(points)
        gaps = f.gather(1, others) - f.gather(1, labels[:, None])
        w = torch.stack(
            [torch.autograd.grad(gap.sum(), points, create_graph=True)[0] for gap in gaps.unbind(1)]
        )
        norms = w.flatten(2).norm(dim=2)
        k = (gaps.T.abs() / norms).argmin(dim=0)
        rows = torch.arange(len(images), device=images.device)
        r = (gaps[rows, k].abs() / norms[k, rows] ** 2)[:, None, None, None] * w[k, rows]
        dx = dx + torch.where(done[:, None, None, None], 0.0, r)
        with torch.no_grad():
            done = done | (net(images + (1 + OVERSHOOT) * dx).argmax(dim=1) != labels)
        if done.all():
            break
    ratio = (1 + OVERSHOOT) * dx.flatten(1).norm(dim=1) / images.flatten(1).norm(dim=1)
    return F.cross_entropy(logits, labels) + LAM * torch.exp(-C * ratio).mean()


def variants(
    net: nn.Module, runtime: RuntimeConfig, max_images: int | None = None
) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Losses by name; ``exact`` visits every candidate in every iteration, and the next three
    take on one saving each, up to the default ``unrolled``."""

    def ours(
        gradient: Literal["unrolled", "boundary"], attack: AttackConfig | None = None
    ) -> Callable[[Tensor, Tensor], Tensor]:
        config = RegularizerConfig(lam=LAM, c=C, gradient=gradient, max_images=max_images)
        config.attack = attack or config.attack
        objective = make_objective(net, config, runtime=runtime)
        return lambda images, labels: objective(images, labels, use_methods=True).loss

    def in_precision(
        loss: Callable[..., Tensor],
    ) -> Callable[[Tensor, Tensor], Tensor]:
        precision = PRECISIONS[runtime.precision]

        def logits_of(images: Tensor) -> Tensor:
            with autocast(images, precision):
                return net(images).float()

        return lambda images, labels: loss(logits_of, images, labels)

    losses = {
        "plain": in_precision(lambda f, images, labels: F.cross_entropy(f(images), labels)),
        "authors": in_precision(authors),
        "exact": ours("unrolled", AttackConfig()),
        "fixed": ours("unrolled", AttackConfig(target_class="fixed")),
        "fixed, pruned": ours(
            "unrolled", AttackConfig(target_class="fixed", candidate_search="pruned")
        ),
        "unrolled": ours("unrolled"),
        "boundary": ours("boundary"),
    }
    net.eval()  # an objective begins in training mode, with dropout
    return losses


def benchmark(options: argparse.Namespace) -> list[Row]:
    """A row a variant: time and FLOPs over plain, memory, and the gradient beside the authors'."""
    device = device_of(options)
    net, images = load_net(options), load_images(options, default=16)
    with torch.no_grad():
        labels = AttackView(net, PRECISIONS[options.precision])(images).argmax(dim=1)
    if options.max_images == "auto":
        raise UserError("--max-images auto is for step; give regularizer a number")
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
    # Where the authors' way does not fit, the exact gradient stands for it.
    wanted = gradients["authors" if "authors" in gradients else "exact"]
    rows: list[Row] = [
        {
            "name": name,
            "time_ratio": typical[name] / typical["plain"],
            "flops_ratio": flops[name] / flops["plain"],
            "speedup_over_authors": typical["authors"] / typical[name]
            if "authors" in typical
            else None,
            "peak_memory_ratio": peaks[name] / peaks["plain"],
            "cosine": _cosine(gradients[name], wanted) if name != "plain" else None,
            "norm_ratio": (gradients[name].norm() / wanted.norm()).item()
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
