"""Networks by name.

In: `ModelConfig`. Out: an ``nn.Module`` from images to logits.
"""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from pipeline.config import ModelConfig
from pipeline.config.text import did_you_mean
from pipeline.errors import UserError, first_few
from pipeline.models import paper_nets, timm_nets, torchvision_nets
from pipeline.models.second_derivative import make_twice_differentiable
from pipeline.models.weights import load_weights
from pipeline.runtime.importing import import_callable, report_exceptions

PAPER_NETS = {
    "mlp": paper_nets.mlp,
    "lenet": paper_nets.lenet,
    "convnet": paper_nets.convnet,
    "nin": paper_nets.nin,
    "caffe_alexnet": paper_nets.caffe_alexnet,
}


def build(config: ModelConfig, num_classes: int, image_size: int | None = None) -> nn.Module:
    """The net of ``config`` with ``num_classes`` outputs and its weights, if any are named.

    Args:
        config: the options of the net.
        num_classes: number of its outputs.
        image_size: side of its input in pixels; only timm's nets of one size use it.

    Raises:
        UserError: no such net, or weights that are missing or do not fit.
    """
    net = construct(config.name, num_classes, image_size)
    make_twice_differentiable(net)
    if config.init_std is not None:
        _draw_weights(net, config.init_std)
    if config.weights is not None:
        load_weights(net, config, num_classes, image_size)
    elif config.new_head:
        raise UserError("model.new_head: there are no weights to keep; give model.weights")
    if config.freeze_batch_norm:
        for module in batch_norms(net):
            module.requires_grad_(requires_grad=False)
    return net


def construct(name: str, num_classes: int, image_size: int | None = None) -> nn.Module:
    """The net ``name`` with random weights, as its library builds it.

    The arguments are those of `build`.

    Raises:
        UserError: no such net.
    """
    if name in PAPER_NETS:
        return PAPER_NETS[name](num_classes)
    if timm_nets.is_timm(name):
        return timm_nets.create(name, num_classes, image_size)
    if ":" in name:
        return _import_user_net(name, num_classes)
    names = torchvision_nets.names()
    if name not in names:
        near = did_you_mean(name, [*PAPER_NETS, *names])
        kinds = f"{', '.join(PAPER_NETS)}, timm:NAME, package.module:callable, "
        kinds += f"or one of torchvision's: {', '.join(names)}"
        raise UserError(f"model.name: no net {name!r}{near or f'; use {kinds}'}")
    return torchvision_nets.create(name, num_classes)


def _draw_weights(net: nn.Module, std: float) -> None:
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _import_user_net(name: str, num_classes: int) -> nn.Module:
    function = import_callable(name, "model.name")
    with report_exceptions(name, "model.name"):
        net = _call_factory(function, num_classes)
    if not isinstance(net, nn.Module):
        raise UserError(f"model.name: {name} returned a {type(net).__name__}, not an nn.Module")
    others = [key for key, value in net.state_dict().items() if not isinstance(value, Tensor)]
    if others:
        raise UserError(
            f"model.name: the state of {name} has entries that are no tensors, which weights files "
            f"cannot hold: {first_few(others)}; let get_extra_state return a tensor"
        )
    return net


def _call_factory(function: Callable[..., Any], num_classes: int) -> Any:
    """Call with num_classes=N if the function accepts it."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # functions written in C may have none
        return function()
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if not takes_any and "num_classes" not in parameters:
        return function()
    try:
        return function(num_classes=num_classes)
    except TypeError as error:
        # **kwargs may be passed to a function that does not accept it.
        if not takes_any or "unexpected keyword argument 'num_classes'" not in str(error):
            raise
    return function()


def batch_norms(net: nn.Module) -> Iterator[nn.Module]:
    """The batch-norm layers of a net, of any dimension."""
    return (m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))


_PROBABILITIES = {"StochasticDepth": "p", "DropPath": "drop_prob"}  # torchvision's and timm's


def draws(module: nn.Module) -> bool:
    """Whether a layer draws random numbers in training mode: dropout, stochastic depth.

    With probability 0, which is the default of many ViTs, it passes its input on.
    """
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p != 0
    attribute = _PROBABILITIES.get(type(module).__name__)
    return attribute is not None and getattr(module, attribute, None) != 0
