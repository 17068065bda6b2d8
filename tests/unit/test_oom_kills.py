"""The kernel's counters of processes that it has killed because memory ran out."""

from pathlib import Path

import pytest

from pipeline.runtime.oom_kills import OomKills


def machine(root: Path, groups: str, **counters: str) -> Path:
    """A machine with these control groups; counters: contents by folder, ``__`` for a slash."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    for name, text in counters.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/")
        path.mkdir(parents=True, exist_ok=True)
        is_old = name.startswith("memory")
        (path / ("memory.oom_control" if is_old else "memory.events")).write_text(text)
    return root


V1 = "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"
V2 = "low 0\nhigh 0\nmax 9\noom 1\noom_kill {}\noom_group_kill 0\n"


@pytest.mark.parametrize(
    ("groups", "counters", "file"),
    [
        ("0::/a\n", {"a": V2}, "a/memory.events"),
        ("0::/\n", {"": V2}, "memory.events"),
        pytest.param("0::/docker/1\n", {"": V2}, "memory.events", id="the path is the host's"),
        pytest.param(
            "0::/slurmstepd.scope/job_7/step_0/user/task_1\n",
            {"slurmstepd.scope__job_7": V2, "slurmstepd.scope__job_7__step_0__user__task_1": V2},
            "slurmstepd.scope/job_7/memory.events",
            id="version 2 counts a task in the job's group",
        ),
        ("5:cpu:/b\n4:memory:/a\n0::/\n", {"memory__a": V1}, "memory/a/memory.oom_control"),
        ("4:hugetlb,memory:/x\n", {"memory": V1}, "memory/memory.oom_control"),
        pytest.param(
            "4:memory:/slurm/uid_0/job_7/step_0/task_1\n",
            {
                "memory__slurm__uid_0__job_7__step_0__task_0": V1,
                "memory__slurm__uid_0__job_7__step_0__task_1": V1,
                "memory__slurm__uid_0__job_71__step_0__task_0": V1,
            },
            "memory/slurm/uid_0/job_7/step_0/task_0/memory.oom_control",
            id="version 1 counts a task in its own group",
        ),
    ],
)
def test_kills_since_the_start_are_counted(
    tmp_path: Path, groups: str, counters: dict[str, str], file: str
) -> None:
    texts = {name: text.format(3) for name, text in counters.items()}
    kills = OomKills(machine(tmp_path, groups, **texts))
    assert kills.number() == 0
    path = tmp_path / "sys/fs/cgroup" / file
    path.write_text(path.read_text().replace("oom_kill 3", "oom_kill 5"))
    assert kills.number() == 2
    path.unlink()  # as when SLURM removes the group of a task
    assert kills.number() == 2


@pytest.mark.parametrize(
    "counters",
    [
        pytest.param({}, id="no counter"),
        pytest.param({"a": "low 0\n"}, id="an older kernel"),
    ],
)
def test_counters_that_cannot_be_read(tmp_path: Path, counters: dict[str, str]) -> None:
    assert OomKills(tmp_path).number() == 0, "no control groups"
    assert OomKills(machine(tmp_path, "0::/a\n", **counters)).number() == 0
    assert OomKills(machine(tmp_path / "b", "9:cpu:/a\n")).number() == 0
