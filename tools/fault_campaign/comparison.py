"""What a run that was disturbed and resumed left behind, compared with an undisturbed one."""

import fcntl
import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from fault_campaign import files

# They depend on the clock or on the machine's load.
_CLOCK = ("time", "train/images_per_second", "train/data_wait", "train/peak_memory_mib")
_SAME_BYTES = ("samples.parquet", "classes.csv", "curve.csv", "curve_relative.csv")
_WEIGHTS = ("weights.pth", "reference.pth")
# They depend on the starts of the run: an event file for each, a checkpoint for each stop, and what
# the launchers write.
_VARYING = re.compile(
    r"tensorboard/events\..*|checkpoints/step-\d+\.pt|submission.*|jobs/.*|code/.*"
)


def differences(folder: Path, whole: Path) -> list[str]:
    """Differences of results, as one line each; empty if all are equal to the last bit.

    Args:
        folder: the run that was disturbed.
        whole: the run that was not.
    """
    checks: list[Callable[[Path, Path], Iterator[str]]] = [
        _weights,
        _newest_checkpoint,
        _equal_files,
        _metrics,
        _summary,
    ]
    problems = []
    for check in checks:
        try:
            problems += check(folder, whole)
        except Exception as error:  # whatever a damaged file raises is a result of the campaign
            problems.append(f"cannot be compared: {type(error).__name__}: {error}")
    return problems


def left_over(folder: Path, whole: Path, aside: int = 0) -> list[str]:
    """Files that an undisturbed run does not leave, or does leave and this one lacks; locks.

    Args:
        folder: the run that was disturbed.
        whole: the run that was not.
        aside: how many damaged checkpoints may have been set aside.
    """
    names, expected = (
        {name for name in files.all_files(part) if not _VARYING.fullmatch(name)}
        for part in (folder, whole)
    )
    set_aside = {name for name in names if name.endswith(".damaged")}
    problems = [f"missing file {name}" for name in sorted(expected - names)]
    problems += [f"file left over: {name}" for name in sorted(names - expected - set_aside)]
    if len(set_aside) > aside:
        problems.append(f"set aside without damage: {', '.join(sorted(set_aside))}")
    num_expected = len(files.numbered_checkpoints(whole))
    num_checkpoints = len(files.numbered_checkpoints(folder))
    if num_checkpoints > num_expected:
        problems.append(f"{num_checkpoints} checkpoints, not {num_expected}")
    return problems + [f"still locked: {path.name}" for path in _locked(folder)]


def _locked(folder: Path) -> Iterator[Path]:
    for path in (folder / ".lock", *folder.glob("results/*/rank*.jsonl")):
        with suppress(FileNotFoundError), path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                yield path


def _weights(folder: Path, whole: Path) -> Iterator[str]:
    for name in _WEIGHTS:
        if (whole / name).exists():
            yield from _tensor_differences(name, _load(folder / name), _load(whole / name))


def _newest_checkpoint(folder: Path, whole: Path) -> Iterator[str]:
    """The newest and the best checkpoint; without times."""
    expected = files.numbered_checkpoints(whole)
    if not expected:
        return
    names = [expected[-1].name, *(p.name for p in whole.glob("checkpoints/best.pt"))]
    for name in names:
        states = [_load(part / "checkpoints" / name) for part in (folder, whole)]
        for state in states:
            for varying in ("seconds", "config", "window"):
                state.pop(varying, None)
        yield from _tensor_differences(f"checkpoints/{name}", *states)


def _load(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", weights_only=True)


def _tensor_differences(name: str, value: Any, expected: Any) -> Iterator[str]:
    """Where two nested values differ; tensors are compared bit by bit."""
    if isinstance(expected, torch.Tensor):
        same = isinstance(value, torch.Tensor) and _same_bits(value, expected)
        if not same:
            yield f"{name} differs"
    elif isinstance(expected, dict) and isinstance(value, dict):
        if value.keys() != expected.keys():
            yield f"{name} has other keys"
        for key in expected.keys() & value.keys():
            yield from _tensor_differences(f"{name}: {key}", value[key], expected[key])
    elif value != expected:
        yield f"{name} differs"


def _same_bits(value: torch.Tensor, expected: torch.Tensor) -> bool:
    """Equal shapes, types and bytes: also for nan, and with 0 and -0 kept apart."""
    if value.dtype != expected.dtype or value.shape != expected.shape:
        return False
    bits = [part.contiguous().reshape(-1).view(torch.uint8) for part in (value, expected)]
    return torch.equal(*bits)


def _equal_files(folder: Path, whole: Path) -> Iterator[str]:
    for name in _SAME_BYTES:
        if (whole / name).exists() and (folder / name).read_bytes() != (whole / name).read_bytes():
            yield f"{name} differs"


def _metrics(folder: Path, whole: Path) -> Iterator[str]:
    """Lines of metrics.jsonl: the same, in the same order, without gaps and repeats."""
    if not (whole / "metrics.jsonl").exists():
        return
    rows, expected = _rows(folder), _rows(whole)
    steps, expected_steps = ([_key(row) for row in part] for part in (rows, expected))
    if steps != expected_steps:
        repeats = len(steps) - len(set(steps))
        gaps = len(set(expected_steps) - set(steps))
        yield f"metrics.jsonl: {gaps} lines missing, {repeats} repeated, {len(steps)} in all"
    elif rows != expected:
        pairs = enumerate(zip(rows, expected, strict=True), 1)
        number = next(number for number, (row, other) in pairs if row != other)
        yield f"metrics.jsonl: line {number} has other values"


def _rows(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [{name: v for name, v in row.items() if name not in _CLOCK} for row in rows]


def _key(row: dict[str, Any]) -> tuple[int, str]:
    names = [name.partition("/")[0] for name in row if name != "step"]
    return row["step"], names[0] if names else ""


def _summary(folder: Path, whole: Path) -> Iterator[str]:
    """Results of summary.json; not times, and the starts of an evaluation."""
    summaries = [json.loads((part / "summary.json").read_text()) for part in (folder, whole)]
    for summary in summaries:
        for varying in ("images_per_second", "training_seconds", "runs"):
            summary.pop(varying, None)
    yield from _tensor_differences("summary.json", *summaries)
