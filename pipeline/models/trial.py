"""A trial forward and backward of a new net: an error if it cannot be attacked or trained.

In: a net. Out: nothing; parameters that the net does not use are frozen.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from pipeline.config import DataConfig, FinetuneConfig, RunConfig
from pipeline.errors import UserError, first_few, first_line, warn
from pipeline.models.attack_view import AttackView
from pipeline.runtime.importing import describe_exception

_ROUNDING = 1e-3  # relative; libraries use other kernels for other batches


def check_net(net: nn.Module, config: RunConfig, num_classes: int) -> None:
    """Check the logits of one image: their shape, finite values, a gradient by the image.

    For fine-tuning, parameters that the logits do not depend on are frozen, with a warning:
    DistributedDataParallel would wait for their gradients. Another warning says that the logits of
    an image depend on its batch; evaluations check this for batches of their size.

    Args:
        net: the net on the CPU.
        config: the options of the run.
        num_classes: number of logits that the net must have.

    Raises:
        UserError: names the net and what is wrong.
    """
    images = trial_images(config.data, 2)
    logits = _differentiable_logits(net, config, images[:1])
    name = f"model.name: {config.model.name}"
    if logits.shape != (1, num_classes):
        raise UserError(
            f"{name} gives logits of shape {tuple(logits.shape[1:])} for an image, not "
            f"({num_classes},); see model.num_classes"
        )
    if not logits.isfinite().all():
        raise UserError(
            f"{name} gives logits that are not finite (NaN or infinity); see model.weights and "
            "model.init_std"
        )
    if isinstance(config, FinetuneConfig):
        _freeze_unused(net, logits, name)
        _warn_of_batches(net, images, logits.detach()[0], name)


def trial_images(data: DataConfig, number: int) -> Tensor:
    """Images (N, C, S, S) of noise on the CPU, to try a net with.

    Not zeros: a net may divide by an image's norm. The run's random numbers stay as they are.
    """
    generator = torch.Generator().manual_seed(0)
    return torch.randn(number, data.channels, data.crop_size, data.crop_size, generator=generator)


def _differentiable_logits(net: nn.Module, config: RunConfig, images: Tensor) -> Tensor:
    """Logits (1, K) of one image (1, C, S, S), with a graph that reaches the image."""
    data, name = config.data, f"model.name: {config.model.name}"
    try:
        graph = AttackView(net).forward_with_grad(images)
    except UserError:
        raise
    except Exception as error:  # of torch, or of the user's own code
        raise UserError(
            f"{name} does not take images of {data.channels} x {data.crop_size} x {data.crop_size} "
            f"(data.channels, data.crop_size): {describe_exception(error)}"
        ) from None
    gradient = None
    if graph.logits.requires_grad:
        try:
            total = graph.logits.sum()
            (gradient,) = torch.autograd.grad(
                total, graph.inputs, retain_graph=True, allow_unused=True
            )
        except RuntimeError as error:
            raise UserError(f"{name} cannot be differentiated: {first_line(error)}") from None
    if gradient is None:
        raise UserError(
            f"{name}: its logits have no gradient with respect to the image; its forward must not "
            "use torch.no_grad(), detach() or operations without a derivative"
        )
    return graph.logits


@torch.no_grad()
def _warn_of_batches(net: nn.Module, images: Tensor, alone: Tensor, name: str) -> None:
    """Compare the logits (K,) of the first image alone with those that it has beside the others."""
    together = AttackView(net)(images)[0]
    difference = (together - alone).abs().amax() / alone.abs().amax()
    if difference > _ROUNDING:
        warn(
            f"{name} gives an image other logits beside another image than alone (relative "
            f"difference {difference:.1g}): perturbations mix images; use batch norm with running "
            "statistics, and no random numbers in evaluation mode"
        )


def _freeze_unused(net: nn.Module, logits: Tensor, name: str) -> None:
    used = {id(leaf) for leaf in _leaves(logits)}
    trained = {key: p for key, p in net.named_parameters() if p.requires_grad}
    unused = [key for key, parameter in trained.items() if id(parameter) not in used]
    if len(unused) == len(trained):
        raise UserError(f"{name} has no parameter to train that its logits depend on")
    for key in unused:
        trained[key].requires_grad = False
    if unused:
        warn(
            f"{name} does not use {first_few(unused)} in its forward; they are not trained, and "
            "are saved as they are"
        )


def _leaves(output: Tensor) -> Iterator[Tensor]:
    """The leaf tensors that the backward pass of ``output`` reaches."""
    nodes, seen = [output.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None:
            yield variable
        nodes += [following for following, _ in node.next_functions]
