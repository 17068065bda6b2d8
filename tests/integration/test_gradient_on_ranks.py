"""The regulariser's gradient on two ranks equals that of one process."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch.nn.parallel import DistributedDataParallel

from pipeline.config import (
    RegularizerConfig,
)
from pipeline.training.objective import make_objective
from tests.helpers.gradients import (
    CONFIG,
    cosine,
    gradient,
    gradient_by,
    plain_gradient,
    setting,
    with_attack,
)


def rank_gradient(
    rank: int, size: int, port_file: str, out: str, name: str, config: RegularizerConfig = CONFIG
) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(port_file, size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    net, images, labels = setting(name, count=8)
    objective = make_objective(net, config)
    ddp = DistributedDataParallel(objective)
    net.eval()
    # Two passes of each rank: rank r takes images 2r, 2r+1, then 4 + 2r, 5 + 2r.
    parts = [slice(2 * rank, 2 * rank + 2), slice(4 + 2 * rank, 6 + 2 * rank)]
    with ddp.no_sync():
        (ddp(images[parts[0]], labels[parts[0]], use_methods=True).loss / 2).backward()
    (ddp(images[parts[1]], labels[parts[1]], use_methods=True).loss / 2).backward()
    torch.save(gradient(net), f"{out}.{rank}")
    dist.destroy_process_group()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("mlp", marks=pytest.mark.slow),
        "lenet",
        pytest.param("squeezenet1_1", marks=pytest.mark.slow),
    ],
)
def test_two_ranks_with_accumulation_equal_one_plain_unrolling(tmp_path: Path, name: str) -> None:
    arguments = (2, str(tmp_path / "store"), str(tmp_path / "gradient"), name)
    multiprocessing.spawn(rank_gradient, arguments, nprocs=2)
    first, second = (torch.load(f"{arguments[2]}.{rank}", weights_only=True) for rank in (0, 1))
    assert torch.equal(first, second)
    net, images, labels = setting(name, count=8)
    expected = plain_gradient(net, images, labels)
    assert cosine(first, expected) > 0.99999
    assert (first - expected).norm() < 1e-9 * expected.norm()


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", [pytest.param("unrolled", marks=pytest.mark.slow), "boundary", "one_step"]
)
def test_two_ranks_in_parts_equal_one(tmp_path: Path, kind: str) -> None:
    config = with_attack(kind, linearize_at="overshot", target_class="fixed")
    net, images, labels = setting("lenet", count=8)
    expected = gradient_by(net, images, labels, config)
    config.max_images = 1
    arguments = (2, str(tmp_path / "store"), str(tmp_path / "gradient"), "lenet", config)
    multiprocessing.spawn(rank_gradient, arguments, nprocs=2)
    actual = torch.load(f"{arguments[2]}.0", weights_only=True)
    assert (actual - expected).norm() < 1e-9 * expected.norm()
