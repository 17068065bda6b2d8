"""Submission of tasks through submitit, the copy of the code, and messages to the user.

In: `Resources` and configurations. Out: jobs, and in the run's folder code/ (a copy of this
project), submitted.yaml (all options, with absolute paths) and jobs/ (submitit's files and the
logs). The jobs use these copies, so edits made while a job is queued have no effect on it.
"""

import contextlib
import dataclasses
import io
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from launchers import run_status, slurm_states
from launchers.options import Resources
from launchers.requeue import requeue_script
from pipeline.config import CONFIGS, RESUME_WORDS, RunConfig, messages
from pipeline.data import demo
from pipeline.errors import UserError
from pipeline.models.weights_names import is_file_name
from pipeline.runtime import config_file, machine

ConfigT = TypeVar("ConfigT", bound=RunConfig)

PROJECT = Path(__file__).resolve().parent.parent
SUBMITTED = "submitted.yaml"  # in a run's folder: its options
# Folders that a job needs. An installed package has its configs in pipeline/, and no tools.
_CODE: tuple[str, ...] = ("pipeline", "launchers")
if CONFIGS.parent == PROJECT:  # a checkout, or a copy of one
    _CODE += ("configs", "tools")
# Parts of sbatch's messages when it cannot connect to SLURM's controller.
_NO_CONTROLLER = ("controller", "could not establish a configuration source")
_MAX_REQUEUES_AFTER_TIMEOUT = 1000  # submitit's default is 3
_NO_LIMIT = 60 * 24 * 366  # minutes; submitit wants a time limit also for a local process


def snapshot_code_and_config(
    folder: Path, configs: Sequence[RunConfig], resources: Resources
) -> list[Path]:
    """Copy the code into a folder, and write each run's options into the run's own folder.

    Args:
        folder: the folder of all runs; for a single run, that run's own.
        configs: the options of the runs, with absolute paths.
        resources: what the jobs will request.

    Returns:
        The files of the options, in the order of ``configs``.

    Raises:
        UserError: the folder cannot be written, an active job writes to it, or there is no sbatch.
    """
    check_can_submit(folder, resources)
    run_folders = [config.folder for config in configs]
    try:
        for name in _CODE:
            target = folder / "code" / name
            if target.exists():
                shutil.rmtree(target)
            shutil.copytree(PROJECT / name, target, ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "code" / machine.COMMIT_FILE).write_text(machine.commit() + "\n")
        paths = [run_folder / SUBMITTED for run_folder in run_folders]
        for config, path in zip(configs, paths, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            config_file.save(config, path)
    except OSError as error:
        raise UserError(f"output: {folder} cannot be written ({error.strerror})") from None
    return paths


def check_can_submit(folder: Path, resources: Resources) -> None:
    """Check that the cluster is available, and that no active job writes in or below a folder.

    Raises:
        UserError: there is no sbatch; or names the job, and the command that cancels it.
    """
    if resources.cluster == "slurm" and not (shutil.which("sbatch") and shutil.which("srun")):
        raise UserError(
            "--cluster slurm: this machine has no sbatch; submit from a login node, or use "
            "--cluster local to run on this machine"
        )
    submissions = run_status.find_submissions([folder])
    for submission, states in zip(submissions, slurm_states.states_of(submissions), strict=True):
        for state in states:
            if state.is_active:
                run_folder = submission.folder
                raise UserError(
                    f"output: job {submission.jobs[0]} ({state.name}) writes to {run_folder}; wait "
                    f"until it ends, or cancel it: {jobs_command('cancel', run_folder)}"
                )


def with_absolute_paths(config: ConfigT) -> ConfigT:
    """A copy of the configuration with absolute paths, so that it is valid in any folder."""
    data, model = config.data, config.model
    data_paths = {
        name: str(Path(value).absolute())
        for name in ("train", "val", "root")
        if (value := getattr(data, name)) not in (None, demo.NAME)
    }
    if isinstance(data.mean, str):
        data_paths["mean"] = str(Path(data.mean).absolute())
    weights = model.weights
    if weights is not None and is_file_name(weights) and Path(weights).exists():
        weights = str(Path(weights).absolute())
    resume = config.resume
    if resume not in RESUME_WORDS:
        resume = str(Path(resume).absolute())
    return dataclasses.replace(
        config,
        output=str(config.folder.absolute()),
        resume=resume,
        data=dataclasses.replace(data, **data_paths),
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
        tasks: what to run, one job for each.
        folder: the run's folder, which holds the copy of the code.
        resources: what each job requests.
        dependency: the jobs to wait for, in sbatch's format (afterok:12); only used by SLURM.

    Raises:
        UserError: sbatch refuses the jobs; contains sbatch's message. Or more jobs than
            --max-parallel would start on this machine.
    """
    if resources.cluster == "local" and len(tasks) > resources.max_parallel:
        raise UserError(
            f"--max-parallel {resources.max_parallel}: --cluster local would start all "
            f"{len(tasks)} jobs at once; give fewer, or use SLURM"
        )
    executor = submitit.AutoExecutor(
        folder / "jobs",
        cluster=resources.cluster,
        slurm_max_num_timeout=_MAX_REQUEUES_AFTER_TIMEOUT,
    )
    executor.update_parameters(**_parameters(folder, resources, dependency))
    try:
        # Jobs import modules from the folder in which they were submitted. When sbatch fails,
        # submitit prints its message and also raises it: the printed copy is dropped.
        no_stderr = contextlib.redirect_stderr(io.StringIO())
        output = _output_to_devnull() if resources.cluster == "local" else contextlib.nullcontext()
        with contextlib.chdir(folder / "code"), output, no_stderr:
            if len(tasks) == 1:
                return [executor.submit(tasks[0])]
            with executor.batch():
                return [executor.submit(task) for task in tasks]
    except (FailedJobError, FailedSubmissionError) as error:
        lines = [line for line in str(error).splitlines() if line.startswith("sbatch: ")]
        raise UserError(_sbatch_error(lines or [str(error)])) from None


def _sbatch_error(lines: Sequence[str]) -> str:
    """One line from the lines that a failed sbatch printed."""
    text = " ".join("; ".join(lines).split())
    if any(part in text.lower() for part in _NO_CONTROLLER):
        return (
            f"--cluster slurm: sbatch cannot connect to SLURM's controller ({lines[-1]}); submit "
            "from a login node, or use --cluster local to run on this machine"
        )
    return text


@contextlib.contextmanager
def _output_to_devnull() -> Iterator[None]:
    """Redirect file descriptors 1 and 2 while background jobs are started, which inherit them.

    Otherwise a pipe that reads the launcher's output would stay open until the jobs end.
    """
    sys.stdout.flush()
    saved = os.dup(1), os.dup(2)
    with open(os.devnull, "w") as devnull:
        os.dup2(devnull.fileno(), 1)
        os.dup2(devnull.fileno(), 2)
    try:
        yield
    finally:
        for number, copy in enumerate(saved, 1):
            os.dup2(copy, number)
            os.close(copy)


def _parameters(folder: Path, resources: Resources, dependency: str | None) -> dict[str, Any]:
    """Parameters of submitit, without those that are None: for these the cluster has defaults.

    Parameters that begin with slurm_ are ignored on other clusters.
    """
    values = {
        "name": folder.name,
        "nodes": resources.nodes,
        "tasks_per_node": resources.tasks_per_node,
        "timeout_min": resources.minutes if resources.cluster == "slurm" else _NO_LIMIT,
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
        # From SLURM 22.05 on, srun does not take over the job's cores per task.
        "slurm_setup": [
            '[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"'
        ],
        # When a task exits with an error or is killed, srun ends the others.
        "slurm_srun_args": ["--kill-on-bad-exit=1"],
        "slurm_additional_parameters": {"requeue": True, "kill-on-invalid-dep": "yes"},
        "slurm_teardown": requeue_script(folder / "jobs" / "deaths"),
    }
    return {name: value for name, value in values.items() if value is not None}


def job_ids(jobs: Sequence[submitit.Job[None]]) -> list[str]:
    """The ids of the jobs, with one id for a whole array."""
    return list(dict.fromkeys(job.job_id.partition("_")[0] for job in jobs))


def submission_message(
    folder: Path,
    config: RunConfig,
    jobs: Sequence[submitit.Job[None]],
    resources: Resources,
    *extra_lines: str,
) -> str:
    """The lines printed after a submission: the jobs, their files, how to watch and stop them.

    ``folder`` is the folder of all runs, and ``config`` has the options of the first run.
    """
    shape = f"{resources.nodes} node(s) x {resources.tasks_per_node} task(s)"
    factor = f"{len(jobs)} x " if len(jobs) > 1 else ""
    return "\n".join(
        [
            f"job {', '.join(job_ids(jobs))}: {factor}{shape}, {resources.minutes} min, on "
            f"{resources.cluster}, in {folder}",
            f"log          tail -F {shlex.quote(str(jobs[0].paths.stdout))}",
            f"curves       {messages.watch(config, folder)}",
            *extra_lines,
            f"progress     {jobs_command('--watch', folder)}",
            f"to stop it   {jobs_command('cancel', folder)}",
        ]
    )


def jobs_command(command: str, folder: Path) -> str:
    """A command line of launchers/jobs.py, quoted for the shell."""
    return shlex.join(["python", messages.script("launchers/jobs.py"), command, str(folder)])
