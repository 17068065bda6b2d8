"""One rank of `gpu_checks.ranks`, under torchrun: the same weights on every rank, and their cost.

torchrun --standalone --nproc_per_node=2 -m gpu_checks.rank_worker --device cuda --json FILE
"""

import argparse
import hashlib
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.common import in_turn, medians, regularizers
from gpu_checks.nets import NUM_CLASSES, net_of, tiny
from pipeline.config import RuntimeConfig, arguments
from pipeline.errors import exit_on_user_error
from pipeline.models import prepare
from pipeline.runtime.distributed import DistributedContext, distributed_session
from pipeline.runtime.files import write_json
from pipeline.training.objective import Objective, data_parallel, make_objective

PER_RANK = {"equality": 4, "overlap": 32}  # images; overlap in the small form: 4
NUM_STEPS, LR = 3, 1e-3
REPEATS = 7


def main() -> None:
    """Join the ranks, measure, and let rank 0 write the results."""
    parser = arguments.Parser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--json", type=Path, required=True, help="file for the results")
    parser.add_argument("--small", action="store_true", help="a tiny net and few images")
    options = parser.parse_args()
    runtime = RuntimeConfig(device=options.device, collective_timeout=60)
    with exit_on_user_error(), distributed_session(runtime) as ranks:
        results = equality(ranks, options) | overlap(ranks, options)
        if ranks.is_main:
            write_json(options.json, results)


def _net(options: argparse.Namespace) -> tuple[nn.Module, int]:
    """The net, the same on every rank, and the side of its images."""
    if not options.small:
        return net_of("resnet18", 224, small=False), 224
    torch.manual_seed(0)
    return tiny(NUM_CLASSES), 32


def _objective(ranks: DistributedContext, options: argparse.Namespace, precision: str) -> Objective:
    net, _ = _net(options)
    runtime = RuntimeConfig(device=options.device, precision=precision)  # pyright: ignore
    net = prepare.move_net(net, runtime, ranks.device)
    return make_objective(net, regularizers(None)["boundary"], runtime=runtime)


def _batch(num_images: int, side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images and labels, the same on every rank."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(num_images, 3, side, side, generator=generator)
    labels = torch.randint(NUM_CLASSES, (num_images,), generator=generator)
    return images.to(device), labels.to(device)


def equality(ranks: DistributedContext, options: argparse.Namespace) -> dict[str, Any]:
    """Weights after a few steps: of every rank, and of one process with the whole batch."""
    num_images, (_, side) = PER_RANK["equality"] * ranks.world_size, _net(options)
    images, labels = _batch(num_images, side, ranks.device)
    start = _flat(_objective(ranks, options, "fp32"))
    whole = _objective(ranks, options, "fp32")
    _train(whole, whole, images, labels)
    part = slice(ranks.rank, None, ranks.world_size)
    objective = _objective(ranks, options, "fp32")
    model = data_parallel(objective, ranks.device, sync_buffers=False)
    _train(model, objective, images[part], labels[part])
    weights, expected = _flat(objective), _flat(whole)
    digests = ranks.gather(hashlib.sha256(weights.numpy().tobytes()).hexdigest())
    difference = ((weights - expected).norm() / (expected - start).norm()).item()
    return {
        "digests": digests,
        "finite": bool(weights.isfinite().all()),
        "difference": difference,
    }


def _train(model: nn.Module, objective: Objective, images: Tensor, labels: Tensor) -> None:
    optimizer = torch.optim.SGD(objective.view.parameters(), lr=LR)
    for _ in range(NUM_STEPS):
        model(images, labels, use_methods=True).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def _flat(objective: Objective) -> Tensor:
    parameters = objective.view.parameters()
    return torch.cat([p.detach().flatten() for p in parameters]).double().cpu()


def overlap(ranks: DistributedContext, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a step with and without the all-reduce of gradients, in bf16."""
    num_images = PER_RANK["equality" if options.small else "overlap"]
    images, labels = _batch(num_images, _net(options)[1], ranks.device)
    objective = _objective(ranks, options, "bf16")
    model = data_parallel(objective, ranks.device, sync_buffers=False)
    variants = {
        f"{name}, {reduction}": _step(model, images, labels, name != "plain", reduces)
        for name in ("plain", "boundary")
        for reduction, reduces in (("all-reduce", True), ("no_sync", False))
    }
    for run in variants.values():  # a warm-up
        run()
    ranks.barrier()
    return {"seconds": medians(in_turn(variants, REPEATS, ranks.device))}


def _step(
    model: DistributedDataParallel, images: Tensor, labels: Tensor, use_methods: bool, reduces: bool
) -> Callable[[], None]:
    def run() -> None:
        model.zero_grad()
        with nullcontext() if reduces else model.no_sync():
            model(images, labels, use_methods=use_methods).loss.backward()

    return run


if __name__ == "__main__":
    main()
