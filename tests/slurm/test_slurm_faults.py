"""tools/chaos.py on a real SLURM of two nodes: faults of the job, one after another in one run."""

import json
import sys
from pathlib import Path

import pytest

from tests.helpers.in_process import in_process
from tests.helpers.runs import ROOT
from tests.helpers.slurm import PLAIN, SCRIPT, TWO_NODES, slurm

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def test_a_node_that_is_lost_and_a_job_that_is_cancelled(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    command = (sys.executable, ROOT / SCRIPT, "--wait", *TWO_NODES, "--", "--output", "OUT", *PLAIN)
    options = ("--checkpoint.every_steps", 2, "--model.name", "tests.helpers.nets:slow_mlp")
    kinds = ("--kinds", "node_down", "cancel", "--faults", 2, "--faults-per-run", 2, "--seed", 1)
    done = in_process("tools/chaos.py", "--output", tmp_path, *kinds, "--", *command, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 faults of 2 kinds, 0 with results lost, 2 with equal bits" in done.stdout
    outcomes = json.loads((tmp_path / "faults.json").read_text())["outcomes"]
    by_kind = {outcome["fault"]["kind"]: outcome for outcome in outcomes}
    assert by_kind["node_down"]["done"].endswith(" down")
    assert by_kind["cancel"]["exit_codes"][:1] == [2]
    assert not slurm("squeue", "-h")
