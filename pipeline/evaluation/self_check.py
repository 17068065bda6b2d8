"""A check before an evaluation: whether an image's results depend on its batch.

`largest_difference_that_fits` measures this for a net; the number is stored in the manifest. See
`pipeline.runtime.reproducibility` for the causes.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from pipeline.models.attack_view import AttackView
from pipeline.runtime import allocator
from pipeline.runtime.reproducibility import MIN_BATCH


def largest_difference(
    view: AttackView, shape: tuple[int, int, int], size: int, device: torch.device
) -> float:
    """The dependence of an image's logits and input gradient on its batch.

    The same images pass through the net in batches of several sizes and at other positions.

    Args:
        view: the net.
        shape: (C, H, W) of an image.
        size: the largest batch that an evaluation uses.
        device: the device of the net.

    Returns:
        The largest difference, relative to the largest logit or gradient entry of the image; 0.0
        if all bits are equal.
    """
    if size == 1:
        return 0.0
    if view.min_batch_size < size:
        size = min(size, 2 * MIN_BATCH + 1)  # larger batches use the same kernels as this size
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(size, *shape, generator=generator).to(device)
    whole = _logits_and_gradients(view, images)
    largest = 0.0
    for part in _parts(size, min(view.min_batch_size, size)):
        results = _logits_and_gradients(view, images[part])
        for values, values_of_whole in zip(results, whole, strict=True):
            expected = values_of_whole[part]
            if not torch.equal(values, expected):
                scale = expected.abs().amax(dim=1, keepdim=True).clamp_min(1e-30)
                largest = max(largest, float(((values - expected).abs() / scale).max()))
    return largest


def _parts(size: int, smallest: int) -> Iterator[Tensor]:
    """Batches of rows: all, rotated by one; fewer than the minimum; one more than the minimum."""
    rows = torch.arange(size)
    yield rows.roll(1)
    yield rows[1 : 1 + max(smallest - 1, 1)]
    if smallest < size:
        yield rows[-(smallest + 1) :]


def _logits_and_gradients(view: AttackView, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (N, K), and the gradients (N, C * H * W) of the difference of two of them."""
    graph = view.forward_with_grad(images)
    with torch.enable_grad():
        top = graph.logits.topk(2, dim=1).values
        gradient = view.logit_diff_gradient(graph, top[:, 1] - top[:, 0])
    return graph.logits.detach(), gradient.flatten(1)


def largest_difference_that_fits(
    view: AttackView, shape: tuple[int, int, int], size: int, device: torch.device
) -> float:
    """`largest_difference` in batches of at most ``size`` images.

    If memory runs out, batches are halved, as in the evaluation itself.
    """
    while True:
        try:
            return largest_difference(view, shape, size, device)
        except (RuntimeError, MemoryError) as error:
            if size == 1 or not allocator.is_out_of_memory(error):
                raise
        size //= 2
        view = view.with_min_batch_size(min(view.min_batch_size, size))
        allocator.release_cached_memory()
