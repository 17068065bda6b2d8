"""The optimiser: SGD with gradient clipping and, in fp16, loss scaling."""

from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config import FinetuneConfig


class Optimizer:
    """SGD on the trained parameters, as ``optim`` and ``runtime.precision`` say."""

    def __init__(
        self, parameters: list[nn.Parameter], config: FinetuneConfig, device: torch.device
    ) -> None:
        self._parameters = parameters
        self._clip_norm = config.optim.max_grad_norm
        self._sgd = torch.optim.SGD(
            parameters,
            lr=config.optim.lr,
            momentum=config.optim.momentum,
            weight_decay=config.optim.weight_decay,
        )
        uses_fp16 = config.runtime.precision == "fp16"
        self._scaler = torch.amp.GradScaler(device.type, enabled=uses_fp16)

    @property
    def loss_scale(self) -> float | None:
        """The present factor on the loss; None where the loss is not scaled."""
        return self._scaler.get_scale() if self._scaler.is_enabled() else None

    def set_lr(self, lr: float) -> None:
        """Use this learning rate from now on."""
        for group in self._sgd.param_groups:
            group["lr"] = lr

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a loss to those of the parameters."""
        self._scaler.scale(loss).backward()

    def step(self) -> None:
        """Change the parameters by their gradients, then clear the gradients."""
        self._scaler.unscale_(self._sgd)
        if self._clip_norm is not None:
            nn.utils.clip_grad_norm_(self._parameters, self._clip_norm)
        self._scaler.step(self._sgd)
        self._scaler.update()
        self.clear_gradients()

    def clear_gradients(self) -> None:
        """Drop the gradients."""
        self._sgd.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """The entries of a checkpoint from which `load_state_dict` continues."""
        return {"optimizer": self._sgd.state_dict(), "scaler": self._scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint, also from one of another precision: the loss scale of a run
        that had none begins anew."""
        self._sgd.load_state_dict(state["optimizer"])
        if state["scaler"]:
            self._scaler.load_state_dict(state["scaler"])
