"""Lines that every entry point prints: at the start, after a signal, and what to do next.

Imports nothing heavy, so that the first line is printed before torch and DALI are loaded.
"""

import os
import shlex
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from pipeline.config import FinetuneConfig, RunConfig, Shard, parse
from pipeline.config.tracking import is_local_store, mlflow_address, mlflow_uri
from pipeline.errors import is_first_process

# For runs that another command started, which says itself what to do next.
NO_NEXT_STEPS = {"DEEPDEFENSE_NEXT_STEPS": "0"}


def check_options(cls: type[RunConfig], description: str | None, output_suffix: str = "") -> None:
    """Refuse wrong options, and print the first line of a run, before the slow imports.

    The arguments are those of `pipeline.config.parse.parse`.
    """
    config = parse.parse(cls, description, output_suffix=output_suffix)
    if is_first_process():
        data = config.data
        names = f"train {data.train}, val {data.val}" if cls is FinetuneConfig else data.val
        size = os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", "1"))
        print(
            f"starting: {config.model.name} on {names}, {size} rank(s), output {config.output}; "
            "loading torch and DALI",
            flush=True,
        )


def no_lower_bound(reason: str) -> str:
    """A warning that distances have no lower bound; empty if ``reason`` is."""
    return reason and f"evaluation.lower_bound has no effect: {reason}"


def interrupted(where: str = "", resume: str = "auto") -> str:
    """The line after a signal.

    Args:
        where: empty, or as `` after step 24``.
        resume: the option of the run. The same command would be refused with never, and start from
            the same checkpoint again with a path.
    """
    line = f"interrupted{where}; everything is saved: rerun the same command to resume"
    if resume != "auto":
        line += f", with --resume auto instead of --resume {resume}"
    if "TORCHELASTIC_RUN_ID" in os.environ:
        line += " (torchrun's own report follows, and torchrun exits with code 1)"
    return line


def after_training(config: FinetuneConfig, ranks_per_node: int) -> str:
    """The commands that evaluate the fine-tuned net and show the run; one line each."""
    command = _quoted(
        [*_launch("pipeline/evaluate.py", ranks_per_node), *evaluation_options(config)]
    )
    return _next_steps(f"evaluate it: {command}", f"curves:      {watch(config)}")


def evaluation_options(config: FinetuneConfig) -> list[str]:
    """The options of pipeline/evaluate.py for the weights that a fine-tuning has written."""
    folder = config.folder
    options = ["--config", folder / "config.yaml", "--model.weights", folder / "weights.pth"]
    options += ["--output", f"{folder}-evaluation"]
    if config.resume != "auto":  # stored in config.yaml: a checkpoint, or never
        options += ["--resume", "auto"]
    if config.evaluation.num_images is not None:  # a part of the images, to train faster
        options += ["--evaluation.num_images", "null"]
    if config.regularizer.gradient == "one_step" and config.evaluation.attack.method == "deepfool":
        # DeepFool's path grows more than the distance: docs/reproduction.md.
        options += ["--evaluation.attack.method", "deepfool+superdeepfool"]
    return list(map(str, options))


def watch(config: RunConfig, folder: Path | None = None) -> str:
    """The commands that show the curves of a run, or the address of MLflow's server. W&B prints
    an address of its own.

    Args:
        config: the options of the run.
        folder: what TensorBoard shows: a folder of several runs; default: the run's own.
    """
    trackers = config.tracking.trackers
    commands = []
    if "tensorboard" in trackers:
        commands.append(_quoted(["tensorboard", "--logdir", folder or config.folder]))
    if "mlflow" in trackers:
        uri = mlflow_uri(config.folder)
        command = _quoted(["mlflow", "ui", "--backend-store-uri", uri])
        if find_spec("flask") is None:  # mlflow-skinny records, and cannot show
            command += " (needs: pip install mlflow)"
        commands.append(command if is_local_store(uri) else f"MLflow at {mlflow_address(uri)}")
    return "; ".join(commands) or _quoted(["tail", "-F", config.folder / "metrics.jsonl"])


def after_shard(folder: Path, argv: Sequence[str], shard: Shard, ranks_per_node: int) -> str:
    """The commands after a shard, while others lack images; one line each.

    Args:
        folder: the output folder.
        argv: the command line of the shard that has ended.
        shard: one that lacks images.
        ranks_per_node: number of ranks on each node.
    """
    words = [
        word
        for before, word in zip(["", *argv], argv, strict=False)
        if before != "--shard" and word != "--shard" and not word.startswith("--shard=")
    ]
    command = [*_launch("pipeline/evaluate.py", ranks_per_node), *words, "--shard", shard]
    merge = ["python", script("tools/report.py"), "merge", folder, "--partial"]
    return _next_steps(
        f"next shard: {_quoted(command)}",
        f"the last shard merges all; to merge what there is: {_quoted(merge)}",
    )


def after_evaluation(folder: Path) -> str:
    """The commands that show the results of an evaluation; one line each."""
    report = ["python", script("tools/report.py")]
    return _next_steps(
        f"as a table: {_quoted([*report, 'table', folder])}",
        f"compare:    {_quoted([*report, 'compare', 'OTHER', folder])} (OTHER: the folder of an "
        "evaluation of another net)",
        f"pictures:   {_quoted([*report, 'figures', 'sheet', folder, '--out', folder / 'sheet'])}",
    )


def after_index(train: Path | None, val: Path | None) -> str:
    """The options of a run that uses an index, or two; one line.

    Args:
        train: index of training images; None if there is none, or if it is not known.
        val: index of evaluation images; the same file if it is not known what it is for.
    """
    named = {"--data.train": train, "--data.val": val}
    options = [_quoted([name, path]) for name, path in named.items() if path is not None]
    return _next_steps(f"use it: {(' or ' if train == val else ' ').join(options)}")


def after_examples(joined: Path) -> str:
    """The options of adversarial training I on an index of images and their examples; one line."""
    return _next_steps(
        f"train on both: {_quoted(['--data.train', joined])} --objective.method clean"
    )


def script(name: str) -> str:
    """The path of a script of this project, relative to the working folder if it is below it."""
    path = os.path.relpath(Path(__file__).parents[2] / name)
    return str(Path(path).absolute().resolve()) if path.startswith("..") else path


def _launch(name: str, ranks_per_node: int) -> list[str]:
    """The command that starts an entry point on one node."""
    if ranks_per_node == 1:
        return ["python", script(name)]
    return ["torchrun", "--standalone", f"--nproc_per_node={ranks_per_node}", script(name)]


def _next_steps(*lines: str) -> str:
    """The lines, or nothing where `NO_NEXT_STEPS` is in the environment."""
    hidden = NO_NEXT_STEPS.items() <= os.environ.items()
    return "" if hidden else "\n".join(lines)


def _quoted(arguments: Sequence[object]) -> str:
    return shlex.join(map(str, arguments))
