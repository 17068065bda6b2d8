"""Submitting tasks: the snapshot, the executor, and what the user is told.

In: `Resources` and configurations. Out: jobs, and in the run's folder code/ (a copy of this
project), submitted.yaml (the merged options, paths absolute) and jobs/ (submitit's files and the
logs). Edits made while a job waits change nothing.
"""

import contextlib
import dataclasses
import io
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from launchers import run_status, slurm_states
from launchers.options import Resources
from pipeline.config import CONFIGS, RunConfig
from pipeline.data import demo
from pipeline.errors import UserError
from pipeline.runtime import config_file

PROJECT = Path(__file__).resolve().parent.parent
SUBMITTED = "submitted.yaml"  # in a run's folder: the options that it was given
# What a job needs. An installed package has its configs inside pipeline/, and no tools.
_CODE: tuple[str, ...] = ("pipeline", "launchers")
if CONFIGS.parent == PROJECT:  # a checkout, or a copy of one
    _CODE += ("configs", "tools")
_NO_CONTROLLER = ("controller", "could not establish a configuration source")
_DEATHS = 5  # after which a run that is killed again stays dead
_REQUEUES = 1000  # submitit counts the times a limit was reached, and would stop at 3


def snapshot_code_and_config(
    folder: Path, configs: Sequence[RunConfig], resources: Resources
) -> list[Path]:
    """Copy the code into a folder, and merged options into each run's own; the options' files.

    Raises:
        UserError: the folder cannot be written, a job that has not ended writes in it, or there is
            no sbatch.
    """
    check_can_submit(folder, resources)
    runs = [Path(config.output) for config in configs]
    try:
        for name in _CODE:
            target = folder / "code" / name
            if target.exists():
                shutil.rmtree(target)
            shutil.copytree(PROJECT / name, target, ignore=shutil.ignore_patterns("__pycache__"))
        paths = [run / SUBMITTED for run in runs]
        for config, path in zip(configs, paths, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            config_file.save(config, path)
    except OSError as error:
        raise UserError(f"output: {folder} cannot be written ({error.strerror})") from None
    return paths


def check_can_submit(folder: Path, resources: Resources) -> None:
    """Refuse where nothing can be submitted, and a folder in or below which a job writes, or will.

    Raises:
        UserError: names the job and how to cancel it.
    """
    if resources.cluster == "slurm" and not (shutil.which("sbatch") and shutil.which("srun")):
        raise UserError(
            "--cluster slurm: there is no sbatch here; submit from a login node, or use "
            "--cluster local to run on this machine"
        )
    known = run_status.find([folder])
    for each, found in zip(known, slurm_states.of(known), strict=True):
        for state in found:
            if state.live:
                raise UserError(
                    f"output: job {each.jobs[0]}, which is {state.name}, writes {each.folder}; "
                    f"wait, or: python launchers/jobs.py cancel {shlex.quote(str(each.folder))}"
                )


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """The configuration with paths that mean the same everywhere."""
    data, model = config.data, config.model
    changed = {
        name: str(Path(value).absolute())
        for name in ("train", "val", "root")
        if (value := getattr(data, name)) not in (None, demo.NAME)
    }
    if isinstance(data.mean, str):
        changed["mean"] = str(Path(data.mean).absolute())
    weights = model.weights
    if weights is not None and Path(weights).exists():
        weights = str(Path(weights).absolute())
    resume = config.resume
    if resume not in ("auto", "never"):
        resume = str(Path(resume).absolute())
    return dataclasses.replace(
        config,
        output=str(Path(config.output).absolute()),
        resume=resume,
        data=dataclasses.replace(data, **changed),
        model=dataclasses.replace(model, weights=weights),
    )


def submit(
    tasks: Sequence[Callable[[], None]],
    folder: Path,
    resources: Resources,
    dependency: str | None = None,
) -> list[submitit.Job[None]]:
    """Submit tasks, several of them as one array.

    Args:
        tasks: what the jobs do.
        folder: of the run, with the snapshot.
        resources: what to ask for, each.
        dependency: what they wait for, as sbatch writes it (afterok:12); SLURM only.

    Raises:
        UserError: sbatch refuses, in its words.
    """
    executor = submitit.AutoExecutor(
        folder / "jobs", cluster=resources.cluster, slurm_max_num_timeout=_REQUEUES
    )
    executor.update_parameters(**_parameters(folder, resources, dependency))
    try:
        # The folder is where the jobs find their modules. What submitit prints of a failed sbatch
        # is in its error too.
        quiet = contextlib.redirect_stderr(io.StringIO())
        with contextlib.chdir(folder / "code"), _silent(resources.cluster == "local"), quiet:
            if len(tasks) == 1:
                return [executor.submit(tasks[0])]
            with executor.batch():
                return [executor.submit(task) for task in tasks]
    except (FailedJobError, FailedSubmissionError) as error:
        words = [line for line in str(error).splitlines() if line.startswith("sbatch: ")]
        raise UserError(_refusal(words or [str(error)])) from None


def _refusal(words: Sequence[str]) -> str:
    """Why sbatch submitted nothing, in one line."""
    text = " ".join("; ".join(words).split())
    if any(sign in text.lower() for sign in _NO_CONTROLLER):
        return (
            f"--cluster slurm: sbatch does not reach SLURM's controller ({words[-1]}); submit from "
            "a login node, or use --cluster local to run on this machine"
        )
    return text


@contextlib.contextmanager
def _silent(local: bool) -> Iterator[None]:
    """Processes of this machine do not keep the launcher's output open: a pipe would wait."""
    if not local:
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1), os.dup(2)
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        for number, copy in enumerate(kept, 1):
            os.dup2(copy, number)
            os.close(copy)


def _parameters(folder: Path, resources: Resources, dependency: str | None) -> dict[str, Any]:
    """What submitit is told; whatever is None is the cluster's to choose. What begins with slurm_
    is passed over elsewhere."""
    values = {
        "name": folder.name,
        "nodes": resources.nodes,
        "tasks_per_node": resources.tasks_per_node,
        "timeout_min": resources.minutes,
        "stderr_to_stdout": True,
        "gpus_per_node": resources.gpus_per_node,
        "cpus_per_task": resources.cpus_per_task,
        "mem_gb": resources.mem_gb,
        "slurm_partition": resources.partition,
        "slurm_account": resources.account,
        "slurm_qos": resources.qos,
        "slurm_constraint": resources.constraint,
        "slurm_exclude": resources.exclude,
        "slurm_array_parallelism": resources.max_parallel,
        "slurm_dependency": dependency,
        "slurm_signal_delay_s": resources.signal_before,
        # A rank that dies takes the others along.
        "slurm_srun_args": ["--kill-on-bad-exit=1"],
        "slurm_additional_parameters": {"requeue": True, "kill-on-invalid-dep": "yes"},
        "slurm_teardown": _requeue_script(folder / "jobs" / "deaths"),
    }
    return {name: value for name, value in values.items() if value is not None}


def _requeue_script(deaths: Path) -> list[str]:
    """Lines of the batch script behind srun: when a task was killed (and the job was not), the job
    starts again, a few times. Whoever ended by himself, with an error or saved, is left alone."""
    file = shlex.quote(str(deaths)) + '"${SLURM_ARRAY_TASK_ID:-}"'
    return [
        "code=$?",
        "job=$SLURM_JOB_ID",  # an array's last task has the number of the whole array for its own
        '[ -z "${SLURM_ARRAY_JOB_ID:-}" ] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID',
        # 3: the other ranks were lost; 255: the job itself was cut.
        'if [ "$code" -eq 3 ] || { [ "$code" -gt 128 ] && [ "$code" -lt 255 ]; }; then',
        f"  date >> {file}",
        f'  if [ "$(wc -l < {file})" -le {_DEATHS} ]; then',
        '    scontrol requeue "$job" && sleep 60',
        "  fi",
        "fi",
        'exit "$code"',
    ]


def job_ids(jobs: Sequence[submitit.Job[None]]) -> list[str]:
    """The jobs' numbers: one for a whole array."""
    return list(dict.fromkeys(job.job_id.partition("_")[0] for job in jobs))


def submission_message(
    folder: Path, jobs: Sequence[submitit.Job[None]], resources: Resources, *more: str
) -> str:
    """What was submitted, where things will be, and how to follow them."""
    shape = f"{resources.nodes} node(s) x {resources.tasks_per_node} task(s)"
    many = f"{len(jobs)} x " if len(jobs) > 1 else ""
    place = shlex.quote(str(folder))
    return "\n".join(
        [
            f"job {', '.join(job_ids(jobs))}: {many}{shape}, {resources.minutes} min, on "
            f"{resources.cluster}, in {folder}",
            f"log          tail -F {shlex.quote(str(jobs[0].paths.stdout))}",
            f"TensorBoard  tensorboard --logdir {place}",
            *more,
            f"progress     python launchers/jobs.py --watch {place}",
            f"to stop it   python launchers/jobs.py cancel {place}",
        ]
    )


def follow(jobs: Sequence[submitit.Job[None]], resources: Resources, wait: bool) -> None:
    """Show the jobs' logs, one after the other, if that is asked for; --cluster debug runs them.

    Raises:
        UserError: one did not end well.
    """
    if wait or resources.cluster == "debug":
        for job in jobs:
            _follow(job)


def _follow(job: submitit.Job[None]) -> None:
    """Show the run's log until the job has ended.

    Raises:
        UserError: it did not end well.
    """
    shown = 0
    while True:
        done = job.done(force_check=True)
        if job.paths.stdout.exists():
            with job.paths.stdout.open("rb") as log:
                log.seek(shown)
                text = log.read()
            shown += len(text)
            sys.stdout.write(text.decode(errors="replace"))
            sys.stdout.flush()
        if done:
            break
        time.sleep(2)
    error = job.exception()
    if error is not None and not job.paths.stdout.exists():
        raise UserError(
            f"job {job.job_id} ended without a log: can the nodes see {job.paths.folder}? Give an "
            "--output that they share"
        )
    if error is not None:
        raise UserError(f"job {job.job_id} did not end well; its log is {job.paths.stdout}")
