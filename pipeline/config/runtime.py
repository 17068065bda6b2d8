"""Options of devices, precision and timeouts."""

from dataclasses import dataclass
from typing import Literal

from .checks import Range, Section, number

_TIMEOUT = Range(minimum=1, maximum=604_800, unit="seconds")  # a week


@dataclass(kw_only=True)
class RuntimeConfig(Section):
    """Devices and precision."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the run. auto: one GPU for each rank if there are GPUs, else the CPU."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the network's forward and backward in training (torch.amp; fp16 with loss
    scaling). Norms and logit differences are always fp32. Evaluation runs in fp32."""
    tf32: bool = False
    """Allow TF32 in fp32 matrix products and convolutions on a GPU, in evaluation too."""
    deterministic: bool | Literal["auto"] = "auto"
    """On a GPU, use algorithms that repeat their results bit by bit, where torch has them. auto: in
    evaluations; true: in training too, which is slower; false: nowhere. CPUs always repeat them."""
    channels_last: bool | Literal["auto"] = "auto"
    """Keep the net and its input in channels_last memory format. auto: on the CPU, and on a GPU
    with half precision, where it is faster."""
    connect_timeout: int = number(60, _TIMEOUT)
    """Seconds that a rank waits at the start until all ranks are connected."""
    collective_timeout: int = number(600, _TIMEOUT)
    """Seconds after which a collective operation fails. Ranks that wait for an unresponsive rank
    then stop. With several GPUs also the longest time of a step, with its wait for data."""
