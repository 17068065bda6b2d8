"""Submitting a task: the snapshot, the executor, the record, and what the user is told.

In: `Resources` and a configuration. Out: a job, and in the run's folder code/ (a copy of this
project), submitted.yaml (the merged options, paths absolute), jobs/ (submitit's files and the logs)
and submission.json. Edits made while a job waits change nothing.
"""

import contextlib
import dataclasses
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from launchers.options import Resources
from pipeline import cli
from pipeline.config import RunConfig
from pipeline.data import demo
from pipeline.errors import UserError
from pipeline.results import write_json

PROJECT = Path(__file__).resolve().parent.parent
_CODE = ("pipeline", "launchers", "configs", "tools")
_DEATHS = 5  # after which a run that is killed again stays dead
_REQUEUES = 1000  # submitit counts the times a limit was reached, and would stop at 3


def snapshot(folder: Path, config: RunConfig) -> Path:
    """Copy the code and the merged options into the run's folder; the options' file.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        for name in _CODE:
            target = folder / "code" / name
            if target.exists():
                shutil.rmtree(target)
            shutil.copytree(PROJECT / name, target, ignore=shutil.ignore_patterns("__pycache__"))
        path = folder / "submitted.yaml"
        cli.save(absolute(config), path)
    except OSError as error:
        raise UserError(f"output: {folder} cannot be written ({error.strerror})") from None
    return path


def absolute(config: RunConfig) -> RunConfig:
    """The configuration with paths that mean the same everywhere."""
    data, model = config.data, config.model
    changed = {
        name: str(Path(value).absolute())
        for name in ("train", "val", "root")
        if (value := getattr(data, name)) not in (None, demo.NAME)
    }
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
    tasks: Sequence[Callable[[], None]], folder: Path, resources: Resources, **slurm: Any
) -> list[submitit.Job[None]]:
    """Submit tasks, several of them as one array.

    Args:
        tasks: what the jobs do.
        folder: of the run, with the snapshot.
        resources: what to ask for, each.
        slurm: further parameters of submitit's, such as slurm_dependency.

    Raises:
        UserError: sbatch refuses, in its words; or there is no sbatch.
    """
    executor = _executor(folder, resources, slurm)
    try:
        with contextlib.chdir(folder / "code"):  # where the jobs find their modules
            if len(tasks) == 1:
                return [executor.submit(tasks[0])]
            with executor.batch():
                return [executor.submit(task) for task in tasks]
    except (FailedJobError, FailedSubmissionError) as error:
        words = [line for line in str(error).splitlines() if line.startswith("sbatch: ")]
        raise UserError("; ".join(words) or str(error)) from None


def _executor(folder: Path, resources: Resources, slurm: dict[str, Any]) -> Any:
    cluster = resources.cluster
    if cluster == "slurm" and not (shutil.which("sbatch") and shutil.which("srun")):
        raise UserError(
            "--cluster slurm: there is no sbatch here; submit from a login node, or use "
            "--cluster local to run on this machine"
        )
    executor = submitit.AutoExecutor(
        folder / "jobs", cluster=cluster, slurm_max_num_timeout=_REQUEUES
    )
    executor.update_parameters(
        name=folder.name,
        nodes=resources.nodes,
        tasks_per_node=resources.tasks_per_node,
        timeout_min=resources.minutes,
        stderr_to_stdout=True,
        **_given(
            gpus_per_node=resources.gpus_per_node,
            cpus_per_task=resources.cpus_per_task,
            mem_gb=resources.mem_gb,
            slurm_partition=resources.partition,
            slurm_account=resources.account,
            slurm_qos=resources.qos,
            slurm_constraint=resources.constraint,
        ),
        slurm_signal_delay_s=resources.grace,
        slurm_srun_args=["--kill-on-bad-exit=1"],  # a rank that dies takes the others along
        slurm_additional_parameters={"requeue": True, "kill-on-invalid-dep": "yes"},
        slurm_teardown=_after_a_death(folder / "jobs" / "deaths"),
        **slurm,
    )
    return executor


def _after_a_death(deaths: Path) -> list[str]:
    """Lines of the batch script behind srun: when a task was killed (and the job was not), the job
    starts again, a few times. Whoever ended by himself, with an error or saved, is left alone."""
    file = shlex.quote(str(deaths)) + '"${SLURM_ARRAY_TASK_ID:-}"'
    return [
        "code=$?",
        'if [ "$code" -gt 128 ]; then',
        f"  date >> {file}",
        f'  if [ "$(wc -l < {file})" -le {_DEATHS} ]; then',
        '    scontrol requeue "$SLURM_JOB_ID" && sleep 60',
        "  fi",
        "fi",
        'exit "$code"',
    ]


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def record(folder: Path, kind: str, job: submitit.Job[None], resources: Resources) -> None:
    """Write submission.json: which job the run is."""
    values = {
        "job": job.job_id.partition("_")[0],  # of an array: the whole
        "kind": kind,
        "cluster": resources.cluster,
        "submitted": time.time(),
        "resources": dataclasses.asdict(resources),
    }
    write_json(folder / "submission.json", values)


def tell(folder: Path, job: submitit.Job[None], resources: Resources) -> str:
    """What was submitted, where things will be, and how to follow them."""
    shape = f"{resources.nodes} node(s) x {resources.tasks_per_node} task(s)"
    log = job.paths.stdout
    number = job.job_id.partition("_")[0]
    lines = [
        f"job {number}: {shape}, {resources.minutes} min, on {resources.cluster}",
        f"log          tail -F {log}",
        f"TensorBoard  tensorboard --logdir {folder / 'tensorboard'}",
        f"checkpoints  {folder / 'checkpoints'}",
    ]
    if resources.cluster == "slurm":
        lines.append(f"state        squeue -j {number}; to stop it: scancel {number}")
    return "\n".join(lines)


def wait(job: submitit.Job[None]) -> None:
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
        time.sleep(1)
    error = job.exception()
    if error is not None:
        raise UserError(f"job {job.job_id} did not end well; its log is {job.paths.stdout}")
