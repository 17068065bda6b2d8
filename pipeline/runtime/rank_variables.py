"""The environment variables that tell a process which rank it is: torchrun's or SLURM's."""

import os
import sys

from pipeline.errors import UserError


def ranks_from_env() -> tuple[int, int, int, int]:
    """Rank, number of ranks, local rank and number of ranks on this node.

    Raises:
        UserError: a variable is missing or has no valid value.
    """
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:  # torchrun
        size = _number("WORLD_SIZE", least=1)
        default_local_rank = "0" if size == 1 else None
        return (
            _number("RANK", below=size),
            size,
            _number("LOCAL_RANK", default_local_rank, below=size),
            _number("LOCAL_WORLD_SIZE", "1", least=1),
        )
    if "SLURM_PROCID" in env and _number("SLURM_NTASKS", "1", least=1) > 1:  # srun: a rank per task
        size = _number("SLURM_NTASKS", least=1)
        local_size = size // _number("SLURM_NNODES", "1", least=1)
        return (
            _number("SLURM_PROCID", below=size),
            size,
            _number("SLURM_LOCALID", below=size),
            max(local_size, 1),
        )
    return 0, 1, 0, 1


def _number(name: str, default: str | None = None, least: int = 0, below: int = sys.maxsize) -> int:
    """The value of an environment variable, a whole number n with least <= n < below."""
    text = os.environ.get(name, default)
    if text is not None and text.isdecimal() and least <= int(text) < below:
        return int(text)
    problem = "is not set" if text is None else f"is {text!r}"
    upper = f" to {below - 1}" if below < sys.maxsize else " up"
    raise UserError(
        f"the environment variable {name} {problem}, and must be a whole number from {least}"
        f"{upper}; start ranks with torchrun or the launchers; for one process, unset RANK and "
        "WORLD_SIZE"
    )
