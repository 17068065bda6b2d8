"""Mistakes: damaged weights and checkpoints."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from tests.unit.mistakes import whole
from tests.unit.mistakes.case import EVALUATE, FINETUNE, Case

Words = Sequence[object]
State = dict[str, Any]


def saved(values: Any) -> bytes:
    file = io.BytesIO()
    torch.save(values, file)
    return file.getvalue()


def loaded(data: bytes) -> State:
    return torch.load(io.BytesIO(data), weights_only=True)


def of_weights(number: str, make: Callable[[], bytes], line: str, name: str = "w.pth") -> Case:
    def argv(folder: Path) -> Words:
        (folder / name).write_bytes(make())
        return (EVALUATE, "--model.weights", folder / name, "--dry_run", "true")

    return Case(number, argv, rf"model\.weights: .*{name} {line}")


def changed_weights(**changes: torch.Tensor | None) -> Callable[[], bytes]:
    def make() -> bytes:
        state = loaded(whole.weights())
        for name, value in changes.items():
            state[name.replace("_", ".")] = value
        return saved({name: value for name, value in state.items() if value is not None})

    return make


def safetensors() -> bytes:
    return save({name: value.contiguous() for name, value in loaded(whole.weights()).items()})


UNREADABLE = "(cannot be read|is not a file|holds a Python object)"
WEIGHTS = [
    of_weights("weights: empty", lambda: b"", UNREADABLE),
    of_weights("weights: half", lambda: whole.half(whole.weights()), "cannot be read"),
    of_weights(
        "weights: garbage",
        lambda: whole.garbage(whole.weights()),
        UNREADABLE,
    ),
    of_weights(
        "weights: code",
        lambda: whole.code(Path("/nowhere/file")),
        UNREADABLE,
    ),
    of_weights("weights: lack a layer", changed_weights(**{"1_bias": None}), "does not fit mlp"),
    of_weights(
        "weights: shape",
        changed_weights(**{"1_bias": torch.zeros(7)}),
        r"does not fit mlp: 1\.bias",
    ),
    of_weights(
        "weights: another head",
        changed_weights(**{"5_weight": torch.zeros(7, 150), "5_bias": torch.zeros(7)}),
        r"does not fit mlp: 5\.bias is \(7,\), the net has \(10,\)",
    ),
    of_weights(
        "weights: safetensors cut",
        lambda: whole.half(safetensors()),
        "cannot be read",
        "w.safetensors",
    ),
    of_weights(
        "weights: safetensors garbage",
        lambda: whole.garbage(whole.weights()),
        "cannot be read",
        "w.safetensors",
    ),
    of_weights(
        "weights: .pth as .safetensors", lambda: whole.weights(), "cannot be read", "w.safetensors"
    ),
]


def of_checkpoint(number: str, damage: whole.Damage, line: str) -> Case:
    def argv(folder: Path) -> Words:
        path = whole.index(folder)
        (folder / "step.pt").write_bytes(damage(whole.run()["checkpoints/step-000000002.pt"]))
        options = ("--resume", folder / "step.pt", "--dry_run", "true")
        return (FINETUNE, *whole.run_options(path), *options)

    return Case(number, argv, rf"step\.pt.*{line}")


def changed_checkpoint(change: Callable[[State], object]) -> whole.Damage:
    def damage(data: bytes) -> bytes:
        state = loaded(data)
        change(state)
        return saved(state)

    return damage


CHECKPOINTS = [
    of_checkpoint("checkpoint: empty", whole.empty, "cannot be read"),
    of_checkpoint("checkpoint: half", whole.half, "cannot be read"),
    of_checkpoint("checkpoint: garbage", whole.garbage, "(cannot be read|is not a file)"),
    of_checkpoint(
        "checkpoint: version", changed_checkpoint(lambda s: s.update(version=9)), "version"
    ),
]


CASES: list[Case] = [*WEIGHTS, *CHECKPOINTS]
