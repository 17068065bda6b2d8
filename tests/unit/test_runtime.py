"""Ranks by environment variables, signals, metrics and progress."""

import json
import re
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from launchers import jobs, slurm_states
from launchers.run_status import Submission
from launchers.slurm_states import TaskState
from pipeline.config import (
    RuntimeConfig,
)
from pipeline.errors import exit_on_user_error, exit_with_error
from pipeline.runtime import distributed, signals
from pipeline.runtime.distributed import DistributedContext, distributed_session
from pipeline.runtime.host_copy import HostCopy
from pipeline.runtime.monitor import Monitor
from pipeline.runtime.rank_variables import ranks_from_env
from pipeline.runtime.reproducibility import deterministic_algorithms
from pipeline.runtime.step_deadline import StepDeadline


def test_metrics_go_on_from_the_checkpoint(tmp_path: Path) -> None:
    with Monitor(tmp_path, shown=True) as monitor:
        for step in (1, 2, 3):
            monitor.scalars(step, "train", {"loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "torn')
    with Monitor(tmp_path, shown=True, step=2) as monitor:
        monitor.scalars(3, "train", {"loss": 30.0})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["train/loss"]) for line in lines] == [(1, 1), (2, 2), (3, 30)]


def test_place_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "SLURM_NTASKS")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    assert ranks_from_env() == (0, 1, 0, 1)
    slurm = {"SLURM_NTASKS": 8, "SLURM_PROCID": 5, "SLURM_LOCALID": 1, "SLURM_NNODES": 2}
    for name, value in slurm.items():
        monkeypatch.setenv(name, str(value))
    assert ranks_from_env() == (5, 8, 1, 4)
    for name, value in zip(names, (3, 4, 1, 2), strict=False):
        monkeypatch.setenv(name, str(value))
    assert ranks_from_env() == (3, 4, 1, 2)


def test_a_step_that_takes_too_long_is_given_up() -> None:
    given_up = threading.Event()
    deadline = StepDeadline(0.3, given_up.set)
    for _ in range(4):  # together longer than the limit
        with deadline:
            time.sleep(0.1)
    assert not given_up.wait(0.5)  # outside of a step
    with deadline:
        assert given_up.wait(5)


def test_an_error_does_not_end_the_limit_of_its_step() -> None:
    """Freeing the loader after it may wait for a GPU that waits for a lost rank."""
    given_up = threading.Event()
    deadline = StepDeadline(0.3, given_up.set)
    with pytest.raises(RuntimeError, match="lost"), deadline:
        raise RuntimeError("lost")
    with deadline:  # a new limit
        time.sleep(0.2)
    assert not given_up.wait(0.5)
    with pytest.raises(RuntimeError, match="lost"), deadline:
        raise RuntimeError("lost")
    assert given_up.wait(5)


def test_a_copy_to_the_host_has_the_values() -> None:
    values = torch.arange(3.0, dtype=torch.float64)
    assert HostCopy(values).wait().tolist() == [0.0, 1.0, 2.0]


def test_values_on_the_host_go_through_the_group_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with GPUs, where the default group cannot sum them."""
    groups = []
    monkeypatch.setattr(dist, "all_reduce", lambda _, group: groups.append(group))
    monkeypatch.setattr(dist, "barrier", lambda group: groups.append(group))
    monkeypatch.setattr(dist, "all_gather_object", lambda *_, group: groups.append(group))
    of_host = dist.ProcessGroup(0, 2)
    context = DistributedContext(0, 2, 0, 2, torch.device("cpu"), of_host)
    context.sum(torch.zeros(1))
    context.barrier()
    context.gather(None)
    assert groups == [of_host] * 3


def test_deterministic_algorithms_are_for_gpus() -> None:
    for name, wanted, expected in (
        ("cuda", True, True),
        ("cuda", False, False),
        ("cpu", True, False),
    ):
        with deterministic_algorithms(torch.device(name), wanted):
            assert torch.are_deterministic_algorithms_enabled() is expected
        assert not torch.are_deterministic_algorithms_enabled()


def test_a_rank_without_a_gpu_prints_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rank 0, which has one, cannot."""
    for name, value in {"RANK": 1, "WORLD_SIZE": 2, "LOCAL_RANK": 1}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(SystemExit), exit_on_user_error(), distributed_session(RuntimeConfig()):
        pass
    assert (
        "error: local rank 1 has no GPU: torch sees 1; start at most 1" in capsys.readouterr().err
    )


def test_a_task_of_slurm_that_sees_its_own_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("SLURM_LOCALID", "3")
    assert distributed._device(RuntimeConfig(), local_rank=3) == torch.device("cuda", 0)
    assert chosen == [0]
    with pytest.raises(SystemExit):  # under torchrun, whose task is another one
        distributed._device(RuntimeConfig(), local_rank=2)


@pytest.mark.parametrize(
    ("kinds", "hosts"),
    [
        (["cuda", "cuda", "cuda"], None),
        (["cpu", "cpu"], None),
        (["cuda", "cpu", "cuda", "cpu"], "node1, node3"),
    ],
)
def test_a_node_without_visible_gpus_is_named(
    kinds: list[str],
    hosts: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store = dist.HashStore()

    def join(rank: int) -> int | None:
        monkeypatch.setattr(distributed.socket, "gethostname", lambda: f"node{rank}")
        try:
            distributed.check_same_device_type(store, rank, len(kinds), kinds[rank])
        except SystemExit as error:
            return error.code

    for rank in range(1, len(kinds)):  # in one thread: each waits for rank 0's answer
        store.set(f"device/{rank}", f"{kinds[rank]} node{rank}")
    codes = [join(rank) for rank in range(len(kinds))]
    assert codes == [None if hosts is None else 2] * len(kinds)
    error = capsys.readouterr().err
    assert error == "" if hosts is None else f"error: torch sees no GPU on {hosts}, but" in error
    assert error.count("\n") == (hosts is not None)


def test_ranks_share_cores_where_they_may_use_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the four ranks of two nodes, SLURM has bound those of the second to their own cores."""
    ranks = DistributedContext(0, 4, 0, 2, torch.device("cpu"))
    for host, own, expected in [("a", (0, 1), 2), ("b", (0,), 1), ("b", (1,), 1)]:
        everyone = [("a", (0, 1)), ("a", (0, 1)), ("b", (0,)), ("b", (1,))]
        monkeypatch.setattr(DistributedContext, "gather", lambda self, value, all=everyone: all)
        monkeypatch.setattr(distributed.socket, "gethostname", lambda host=host: host)
        monkeypatch.setattr(distributed, "affinity", lambda own=own: own)
        assert ranks.num_sharing_cores() == expected


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        ({"RANK": "a", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "RANK is 'a', .* from 0 to 1;"),
        ({"RANK": "0", "WORLD_SIZE": "x", "LOCAL_RANK": "0"}, "WORLD_SIZE is 'x', .* from 1 up;"),
        ({"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "RANK is '2', .* from 0 to 1;"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, "LOCAL_RANK is not set, .* start ranks with torchrun"),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "1"}, "SLURM_LOCALID is not set"),
    ],
)
def test_wrong_variables_of_ranks(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variables: dict[str, str],
    line: str,
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended, distributed_session(RuntimeConfig()):
        pass
    assert ended.value.code == 2
    (printed,) = capsys.readouterr().err.splitlines()
    assert re.search(f"error: the environment variable {line}", printed), printed


def test_a_mistake_is_printed_where_the_rank_is_not_known(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "a")
    with pytest.raises(SystemExit):
        exit_with_error("a mistake")
    assert capsys.readouterr().err == "error: a mistake\n"


def test_jobs_show_a_run_that_starts_or_evaluates(tmp_path: Path) -> None:
    run = Submission(tmp_path, "finetune", "local", ["1"], [])
    going = [TaskState("RUNNING", "here")]
    assert "starting" in jobs._cells(run, going)
    assert "starting" not in jobs._cells(run, [TaskState("PENDING", "here")])
    with Monitor(tmp_path, shown=True) as monitor:
        monitor.start_progress("evaluating", 200, at="step 24/48")
    assert "evaluating 0/200, step 24/48" in jobs._cells(run, going)
    values = json.loads((tmp_path / "progress.json").read_text())
    del values["at"]  # as an earlier version writes it
    (tmp_path / "progress.json").write_text(json.dumps(values))
    assert "evaluating 0/200" in jobs._cells(run, going)


def test_a_job_of_another_machine_has_no_known_state(tmp_path: Path) -> None:
    (tmp_path / "summary.json").touch()
    there = Submission(tmp_path, "finetune", "local", ["1"], [], host="elsewhere")
    here = Submission(tmp_path, "finetune", "local", ["1"], [])
    states = slurm_states.states_of([there, here])
    assert [[state.name for state in of_run] for of_run in states] == [["UNKNOWN"], ["COMPLETED"]]


def test_jobs_show_the_shortest_time_left(tmp_path: Path) -> None:
    run = Submission(tmp_path, "finetune", "slurm", ["1"], [])
    times = ("1:30:00", "1:10:00", "1-00:00:00", "2:00:00")
    states = [TaskState("RUNNING", "here", time_left=time) for time in times]
    assert jobs._cells(run, states)[-1] == "1:10:00"


def test_a_signal_stops_later_requests_of_the_process_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_received", set())
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
    handlers = {number: signal.getsignal(number) for number in numbers}
    try:
        first = signals.StopRequest()
        assert not first.received
        signal.raise_signal(signal.SIGUSR2)
        second = signals.StopRequest()
        signal.raise_signal(signal.SIGTERM)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert first.signals == {signal.SIGUSR2}
    assert second.signals == {signal.SIGUSR2, signal.SIGTERM}
    assert signals.received_signals() == {signal.SIGUSR2, signal.SIGTERM}
