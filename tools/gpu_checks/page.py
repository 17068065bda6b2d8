"""The results as JSON and as a page in Markdown, with the machine that they are of."""

import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.cuda import nccl

from benchmarks.common import Row
from gpu_checks.check import Outcome, Setup
from pipeline.runtime import machine
from pipeline.runtime.files import atomic_write, write_json
from pipeline.runtime.text_tables import markdown_table

JSON_NAME, PAGE_NAME = "gpu_check.json", "gpu_check.md"


def describe_machine(setup: Setup) -> dict[str, Any]:
    """Device, driver and versions of packages."""
    started = datetime.now(UTC).isoformat(timespec="seconds")
    about: dict[str, Any] = {"started": started, "device": setup.device.type}
    about["cpu"] = machine.cpu_name()
    about |= {"cores": machine.cores(), "size": "small" if setup.size.small else "full"}
    about["reference of nets"] = f"fp{32 if setup.on_gpu else 64} on the CPU"
    if setup.on_gpu:
        about |= {
            "device": torch.cuda.get_device_name(setup.device),
            "gpus": torch.cuda.device_count(),
            "compute capability": ".".join(map(str, torch.cuda.get_device_capability())),
            "memory, GiB": round(torch.cuda.mem_get_info(setup.device)[1] / 2**30, 1),
            "driver": driver_version(),
            "cudnn": torch.backends.cudnn.version(),
            "nccl": _nccl_version(),
        }
    return about | {"cuda of torch": torch.version.cuda} | machine.versions()


def _nccl_version() -> str:
    if not distributed.is_nccl_available():
        return "none"
    return ".".join(map(str, nccl.version()))


def driver_version() -> str:
    """The version of NVIDIA's driver, or why it is not known."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return "unknown: no nvidia-smi"
    query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown: {type(error).__name__}"
    return ", ".join(sorted(set(done.stdout.split())))


def write_results(
    folder: Path, about: dict[str, Any], outcomes: Sequence[Outcome], seconds: float
) -> None:
    """Write both files.

    Args:
        folder: where to write them.
        about: the machine.
        outcomes: of the checks so far.
        seconds: since the start.
    """
    results = {
        "machine": about,
        "seconds": round(seconds, 1),
        "checks": [outcome.to_dict() for outcome in outcomes],
    }
    write_json(folder / JSON_NAME, results)
    with atomic_write(folder / PAGE_NAME) as partial:
        partial.write_text(page(about, outcomes, seconds))


def summary(outcomes: Sequence[Outcome]) -> str:
    """How many checks ended how."""
    counts = Counter(outcome.status for outcome in outcomes)
    return ", ".join(f"{counts[status]} {status}" for status in ("passed", "failed", "skipped"))


def page(about: dict[str, Any], outcomes: Sequence[Outcome], seconds: float) -> str:
    """The page: the machine, one line for each check, then the values of each."""
    lines = [
        (outcome.name, outcome.status, f"{outcome.seconds:.1f}", _cell(outcome.reason))
        for outcome in outcomes
    ]
    parts = [
        f"# GPU check: {summary(outcomes)}\n",
        f"{seconds:.0f} seconds in all; {about['size']} form, on {about['device']}.\n",
        markdown_table(("machine", ""), ((name, _cell(value)) for name, value in about.items()), 2),
        markdown_table(("check", "status", "seconds", "reason"), lines, num_left=4),
    ]
    return "\n".join([*parts, *(_section(outcome) for outcome in outcomes if _has_more(outcome))])


def _has_more(outcome: Outcome) -> bool:
    return bool(outcome.record.values or outcome.record.tables or outcome.trace)


def _section(outcome: Outcome) -> str:
    parts = [f"## {outcome.name}: {outcome.status}\n"]
    if outcome.record.values:
        lines = (
            (value.name, _cell(value.value), value.tolerance, "" if value.passed else "**failed**")
            for value in outcome.record.values
        )
        head = ("value", "measured", "tolerance", "")
        parts.append(markdown_table(head, ([_cell(c) for c in line] for line in lines), 4))
    for title, rows in outcome.record.tables.items():
        parts += [f"{title}:\n", _table(rows)]
    if outcome.trace:
        parts.append(f"```\n{outcome.trace.rstrip()}\n```\n")
    return "\n".join(parts)


def _table(rows: Sequence[Row]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return markdown_table(columns, ([_cell(row.get(name)) for name in columns] for row in rows))


def _cell(value: Any) -> str:
    """A value in one cell of a table."""
    if value is None:
        return ""
    text = f"{value:,.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.split())
