"""What makes a run slower than others, to be said when it begins."""

from torch import Tensor, nn

from pipeline.methods import DeepDefense
from pipeline.regularizer.unrolled import is_piecewise_linear_attack
from pipeline.training.objective import Objective


def cost_note(objective: Objective, images: Tensor) -> str:
    """A line about it; empty if there is nothing to say.

    Args:
        objective: of the run.
        images: (N, C, H, W) of any content, for trials of the net.
    """
    reason = objective.why_passes_are_separate(images)
    if reason is not None:
        return (
            "regularizer.gradient one_step takes passes of its own beside the cross-entropy's "
            f"({reason}): 2.7 to 3.7 plain steps a step instead of 2, docs/gradient.md"
        )
    num_grouped = sum(_num_grouped(method, images) for method in objective.methods)
    if num_grouped:
        return (
            "regularizer.gradient unrolled takes second derivatives of this net, and torch "
            f"computes those of its {num_grouped} grouped convolutions one group at a time; "
            "boundary and one_step take none, docs/gradient.md"
        )
    return ""


def _num_grouped(method: object, images: Tensor) -> int:
    """Number of grouped convolutions that a method takes second derivatives of."""
    if not isinstance(method, DeepDefense) or not method.active:
        return 0
    options, view = method.options, method.attack_view()
    unrolls = options.gradient == "unrolled" and options.attack.method == "deepfool"
    if not unrolls or is_piecewise_linear_attack(view, images, options.attack):
        return 0
    convolutions = (m for m in view.net.modules() if isinstance(m, nn.Conv2d))
    return sum(convolution.groups > 1 for convolution in convolutions)
