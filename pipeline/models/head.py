"""A net's head: the last layer, which has a row of weights for each class.

In: a net with its random start, and a state dict for other classes. Out: which tensors are the
head's.
"""

from torch import Tensor, nn

from pipeline.errors import UserError

ClassLayer = nn.Linear | nn.modules.conv._ConvNd


def head_keys(net: nn.Module, state: dict[str, Tensor], num_classes: int) -> list[str]:
    """Names of the tensors that belong to the head.

    These are the ones with a row for each class that have another number of rows in ``state``; if
    there are none, all tensors of the last linear or convolutional layer with a row for each class.

    Args:
        net: with ``num_classes`` outputs.
        state: weights for any number of classes; the head's may be absent.
        num_classes: number of classes of the net.

    Raises:
        UserError: the net has no such layer.
    """
    resized = resized_keys(net.state_dict(), state, num_classes)
    if resized:
        return resized
    head = last_class_layer(net, num_classes)
    if head is None:
        raise UserError(
            f"model.new_head: the net has no linear or convolutional layer with {num_classes} rows"
        )
    name, layer = head
    return [f"{name}.{key}" for key in layer.state_dict()]


def last_class_layer(net: nn.Module, num_classes: int) -> tuple[str, ClassLayer] | None:
    """The last linear or convolutional layer, in the order of definition, with a row of weights for
    each class, and its name; None for a net without one."""
    layers = [
        (name, module)
        for name, module in net.named_modules()
        if isinstance(module, ClassLayer) and len(module.weight) == num_classes
    ]
    return layers[-1] if layers else None


def resized_keys(
    expected: dict[str, Tensor], state: dict[str, Tensor], num_classes: int
) -> list[str]:
    """Names of the tensors with a row for each class that differ from ``state`` in the number of
    rows alone."""
    return [
        key
        for key, value in expected.items()
        if key in state
        and value.dim() > 0
        and len(value) == num_classes
        and state[key].dim() == value.dim()
        and len(state[key]) != num_classes
        and state[key].shape[1:] == value.shape[1:]
    ]
