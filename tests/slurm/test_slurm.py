"""Fine-tuning on a real SLURM of two nodes: a run cut in every way equals an uninterrupted one."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.in_process import call
from tests.helpers.runs import ROOT, Run, environment, metrics
from tests.helpers.slurm import (
    PLAIN,
    SBATCH,
    SCRIPT,
    TWO_NODES,
    equal,
    finished,
    log_of,
    processes,
    slurm,
    submit,
    task,
    wait_for_step,
    wait_until,
)

pytestmark = pytest.mark.slurm
SLOW = ("--model.name", "tests.helpers.nets:slow_mlp")


def test_two_nodes(run: Run, cluster: None, two_ranks: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a run; $(touch nothing) 'quoted'"
    submit(run, folder)
    assert finished(folder)["ranks"] == 2
    equal(two_ranks, folder)
    assert (folder / "code" / "pipeline" / "finetune.py").exists()


@pytest.mark.slow
def test_what_the_cluster_refuses_is_said_in_its_words(cluster: None, tmp_path: Path) -> None:
    cases = [
        (("--partition", "nowhere"), "invalid partition specified: nowhere"),
        (("--account", "nobody"), "Invalid account"),
        (("--nodes", 9), "sbatch: "),
        (("--time", "3d"), "sbatch: "),
    ]
    small = ("--", *PLAIN, "--train.batch_size", 360, "--output", tmp_path / "x")
    for argv, said in cases:
        ended = call(SCRIPT, *argv, *small)
        assert ended.code == 2
        (line,) = ended.stderr.splitlines()
        assert said in line


@pytest.mark.slow
@pytest.mark.parametrize("script", ["finetune", "evaluate"])
def test_scripts_are_accepted(cluster: None, script: str) -> None:
    argv = ("--gpus-per-node=2", "--cpus-per-task=2", "--time=30")
    slurm("sbatch", "--test-only", *argv, f"slurm/{script}.sbatch")


@pytest.mark.slow
def test_a_folder_that_the_nodes_cannot_see(cluster: None, tmp_path: Path) -> None:
    """Made on a file system that only the submitting processes have."""
    inside = """mount -t tmpfs none "$1" && cd "$2" || exit 99
"$3" launchers/finetune.py --time 5m --wait -- --output "$1/run"
"$3" launchers/jobs.py "$1"; "$3" launchers/jobs.py logs "$1" """
    argv = ("unshare", "--mount", "bash", "-c", inside, "-", tmp_path, ROOT, sys.executable)
    done = subprocess.run(
        list(map(str, argv)), capture_output=True, text=True, env=environment(), timeout=120
    )
    if done.returncode == 99 or "unshare failed" in done.stderr:
        pytest.skip("needs a mount namespace of its own")
    question = f"can the nodes see {tmp_path}/run"
    assert question in done.stderr  # --wait
    assert done.stdout.count(question) == 2  # the list, and the logs


@pytest.mark.slow
def test_preempted_and_resumed(run: Run, cluster: None, four_ranks: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    where = (*TWO_NODES, "--tasks-per-node", 2)
    submit(run, folder, "--checkpoint.every_steps", 1000, *SLOW, where=where)
    wait_for_step(folder, 7)
    argv = ("--partition", "urgent", "--nodes", "2", "--exclusive", "--wrap", "sleep 1")
    slurm("sbatch", *argv, "--output", "/dev/null")
    assert finished(folder)["ranks"] == 4
    assert "interrupted after step" in log_of(folder)
    assert "resuming from" in log_of(folder)
    losses = metrics(folder, "train/loss")
    assert list(losses) == list(range(1, 31))
    assert np.isfinite(list(losses.values())).all()
    equal(four_ranks, folder)


@pytest.mark.slow
def test_requeued_killed_and_a_node_lost(
    run: Run, cluster: None, two_ranks: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    job = submit(run, folder, *SLOW)  # a checkpoint each 5 steps
    wait_for_step(folder, 7)
    slurm("scontrol", "requeue", job)
    wait_for_step(folder, 14)
    os.kill(task(folder / "jobs", SLURM_PROCID=1), signal.SIGKILL)
    wait_for_step(folder, 23)
    lose("127.0.0.12")
    finished(folder)
    assert log_of(folder).count("resuming from") == 3
    equal(two_ranks, folder)


def lose(node: str) -> None:
    """Kill all that runs on a node at once, wait until SLURM has noticed, and bring it back."""
    daemon = Path(os.environ["SLURM_CONF"]).with_name(f"slurmd-{node}.pid").read_text().strip()
    there = [pid for pid, _ in processes(SLURMD_NODENAME=node)]
    parents = {int(Path("/proc", str(pid), "stat").read_text().split()[3]) for pid in there}
    for pid in [int(daemon), *parents, *there]:
        os.kill(pid, signal.SIGKILL)
    # The ranks on the other node end, and the job is requeued by its own script; or SLURM is first.
    wait_until(
        lambda: "RUNNING" not in slurm("squeue", "-h", "-o", "%T"), lambda: slurm("sinfo", "-N")
    )
    slurm("slurmd", "-N", node)


@pytest.mark.slow
def test_without_submitit(cluster: None, two_ranks: Path, tmp_path: Path) -> None:
    """slurm/finetune.sbatch: preempted, requeued, and equal to torchrun on one machine."""
    folder, log = tmp_path / "a run", tmp_path / "log.txt"
    argv = ("--gpus-per-node=0", "--cpus-per-task=2", "--time=5", "--output", log)
    options = (*PLAIN, *SLOW, "--output", folder)
    text = slurm("sbatch", *argv, "slurm/finetune.sbatch", *options, env=SBATCH)
    path = folder / "metrics.jsonl"
    wait_until(lambda: path.exists() and '"step": 7,' in path.read_text(), log.read_text)
    slurm("scancel", "--batch", "--signal=USR2", text.split()[-1])
    wait_until((folder / "summary.json").exists, log.read_text)
    assert json.loads((folder / "summary.json").read_text())["ranks"] == 2
    assert "resuming from" in log.read_text()
    equal(two_ranks, folder)
