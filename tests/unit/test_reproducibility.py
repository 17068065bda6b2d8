"""An image's results are the same bits in any batch, shard, rank and number of threads, on CPUs."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.evaluation import merge
from pipeline.evaluation.self_check import largest_difference, largest_difference_that_fits
from pipeline.evaluation.summary import write_outputs
from pipeline.models.attack_view import AttackView
from pipeline.runtime import reproducibility
from pipeline.runtime.reproducibility import MIN_BATCH
from tests.helpers import nets
from tests.helpers.stored_results import manifest, shard

CPU = torch.device("cpu")


@pytest.fixture
def threads() -> Iterator[None]:
    number = torch.get_num_threads()
    yield
    torch.set_num_threads(number)


class _DependsOnBatch(nn.Module):
    """A net whose rows differ in the last bits by their place, as with MKL's default mode."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nets.smooth()

    def forward(self, x: Tensor) -> Tensor:
        even = torch.arange(len(x)) % 2 == 0
        logits = self.net(x)
        return torch.where(even[:, None], logits, logits * (1 + 1e-6))


def test_the_check_notices_a_net_that_depends_on_the_batch() -> None:
    torch.manual_seed(0)
    shape = (3, 32, 32)
    view = AttackView(nets.smooth(), min_batch_size=MIN_BATCH)
    assert largest_difference(view, shape, 100, CPU) == 0.0
    for smallest in (MIN_BATCH, 40):
        view = AttackView(_DependsOnBatch(), min_batch_size=smallest)
        assert 2e-7 < largest_difference(view, shape, 40, CPU) < 5e-6


class _RunsOutOfMemory(nn.Sequential):
    """A net that takes eight images at most, and no empty batch."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 8:
            raise MemoryError
        return super().forward(x.view(len(x), -1))


def test_the_check_takes_as_many_images_as_fit_in_memory() -> None:
    view = AttackView(_RunsOutOfMemory(nn.Linear(12, 4)), min_batch_size=40)
    assert largest_difference_that_fits(view, (3, 2, 2), 40, CPU) < 1e-6
    assert view.min_batch_size == 40
    assert largest_difference(view, (3, 2, 2), 1, CPU) == 0.0


def test_sizes_of_batches(threads: None) -> None:
    at_once, fewest = reproducibility.images_at_once, reproducibility.min_batch_size
    torch.set_num_threads(2)
    assert [at_once(size, CPU) for size in (1, 16, 100)] == [16, 16, 100]
    assert [fewest(size, CPU) for size in (16, 100)] == [16, 16]
    assert fewest(5, CPU) == 5  # after memory has run out
    torch.set_num_threads(8)
    assert fewest(100, CPU) == 100
    assert (at_once(5, torch.device("cuda")), fewest(5, torch.device("cuda"))) == (5, 5)


def test_results_of_nets_that_depend_on_the_batch_agree_to_what_was_recorded(
    tmp_path: Path,
) -> None:
    recorded = manifest()
    recorded.about["batch_difference"] = 1e-7
    shard(tmp_path, 0, 1, [0, 1, 2], manifest=recorded)
    shard(tmp_path, 1, 2, [2], perturbation_norm=[3.0 * (1 + 9e-4)], steps=[4])
    merged = merge.merge_shards(tmp_path)
    assert write_outputs(tmp_path, merged).batch_difference == 1e-7
    shard(tmp_path, 2, 3, [1], perturbation_norm=[2.0 * (1 + 2e-3)])
    with pytest.raises(UserError, match="two results of image 1 disagree: perturbation_norm"):
        merge.merge_shards(tmp_path)


def test_results_of_different_machines_agree_within_single_precision(tmp_path: Path) -> None:
    for number, name in enumerate(("CPU A", "CPU B")):
        about = manifest()
        about.about["kernels"] = {"device": name}
        changes = {"perturbation_norm": [2.0 * (1 + 1e-4 * number)]}
        shard(tmp_path, number, 2, [1], manifest=about, **changes)
    assert len(merge.merge_shards(tmp_path).stored.samples) == 1


def test_a_shard_that_is_resumed_keeps_the_largest_difference(tmp_path: Path) -> None:
    for difference in (1e-7, 0.0):
        about = manifest()
        about.about["batch_difference"] = difference
        store = shard(tmp_path, 0, 1, [0], manifest=about)
    assert store.read().batch_difference == 1e-7


def test_a_shard_that_is_resumed_on_another_machine_agrees_within_single_precision(
    tmp_path: Path,
) -> None:
    for row, name in enumerate(("CPU A", "CPU B")):
        about = manifest()
        about.about["kernels"] = {"device": name}
        shard(tmp_path, 0, 2, [row], manifest=about)
    shard(tmp_path, 1, 2, [0], manifest=about, perturbation_norm=[1.0 + 1e-4])
    assert len(merge.merge_shards(tmp_path).stored.samples) == 2
