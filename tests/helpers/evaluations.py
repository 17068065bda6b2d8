"""Results of pipeline/evaluate.py, and its processes that are killed."""

import json
import subprocess
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.helpers.in_process import EVALUATE
from tests.helpers.runs import command, environment, kill_all

FGS = ("--evaluation.fgs.eps", "[0.02,0.1]", "--evaluation.fgs.search", "true")


def results(folder: Path) -> tuple[dict, dict[str, dict]]:
    summary = json.loads((folder / "summary.json").read_text())
    rows = pq.read_table(folder / "samples.parquet").to_pylist()
    assert len(rows) == len({row["id"] for row in rows})
    return summary, {row["id"]: row for row in rows}


def assert_same_results(one: Path, other: Path) -> None:
    """Two evaluations found the same: norms within 1e-5, everything else exactly."""
    (summary, rows), (summary2, rows2) = results(one), results(other)
    assert rows.keys() == rows2.keys()
    for name, row in rows.items():
        for column, value in row.items():
            if isinstance(value, float):
                expected = pytest.approx(value, rel=1e-5, nan_ok=True)
                assert rows2[name][column] == expected, (name, column)
            else:
                assert rows2[name][column] == value, (name, column)
    for key in summary.keys() - {"runs", "rho2", "ratio_median", "ratio_quantiles"}:
        assert summary2[key] == summary[key], key
    for key in ("rho2", "ratio_median", "ratio_quantiles"):
        assert summary2[key] == pytest.approx(summary[key], rel=1e-5), key


def kill_after_lines(folder: Path, lines: int, *options: object) -> int:
    """Start an evaluation, kill -9 all of it after ``lines`` lines; returns how many it wrote."""
    process = subprocess.Popen(
        command(EVALUATE, *options, "--output", folder),
        env=environment(),
        stdout=subprocess.DEVNULL,
    )

    def written() -> int:
        return sum(p.read_bytes().count(b"\n") for p in folder.glob("results/*/rank*.jsonl"))

    while written() < lines:
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.002)
    kill_all(process)
    return written()
