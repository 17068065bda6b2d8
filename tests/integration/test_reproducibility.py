"""An image's results are the same bits with other kernels, which a new process loads."""

import pytest

from benchmarks import batches


@pytest.mark.parametrize("kernels", ["ATen AVX2", "ATen and oneDNN SSE", "MKL AVX2"])
def test_other_kernels_give_the_same_bits_in_any_division(kernels: str) -> None:
    row = batches.with_kernels(kernels, "mlp", None, None, 60)
    assert (row["num_differing"], row["self_check"]) == (0, 0.0)
