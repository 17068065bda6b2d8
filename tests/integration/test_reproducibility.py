"""An image's results are the same bits in any division, with any kernels."""

from collections.abc import Iterator

import pytest
import torch

from benchmarks import batches


@pytest.mark.slow
@pytest.mark.parametrize("kernels", ["ATen AVX2", "ATen and oneDNN SSE", "MKL AVX2"])
def test_other_kernels_give_the_same_bits_in_any_division(kernels: str) -> None:
    row = batches.with_kernels(kernels, "mlp", None, None, 60)
    assert (row["num_differing"], row["self_check"]) == (0, 0.0)


@pytest.fixture
def threads() -> Iterator[None]:
    number = torch.get_num_threads()
    yield
    torch.set_num_threads(number)


@pytest.mark.parametrize(
    ("net", "num_images"),
    [
        ("mlp", 24),
        pytest.param("mlp", 400, marks=pytest.mark.slow),
        pytest.param("lenet", 40, marks=pytest.mark.slow),
    ],
)
def test_divisions_batches_and_threads_give_the_same_bits(
    net: str, num_images: int, threads: None
) -> None:
    """Digits whole and in 3, 5 and 7 parts, batches of 8, 32 and 100, 1 and 2 threads."""
    row = batches.compare(net, None, None, num_images)
    assert row == {
        "num_images": num_images,
        "num_differing": 0,
        "largest_relative": 0.0,
        "self_check": 0.0,
    }
