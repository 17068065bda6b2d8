"""The lines that say what to do next; tests/integration/test_tiny_run.py runs such commands."""

import shlex
from pathlib import Path

import pytest
from submitit import LocalJob

from launchers import command_lines, finetune, options, submit
from pipeline.config import EvaluateConfig, FinetuneConfig, Shard, messages, parse
from pipeline.errors import first_line


def tuning(*argv: str) -> FinetuneConfig:
    return parse.parse(FinetuneConfig, "", [*argv, "--output", "runs/a b"])


def test_the_evaluation_of_a_run_of_several_ranks() -> None:
    first, second = messages.after_training(tuning(), 4).splitlines()
    argv = shlex.split(first.removeprefix("evaluate it: "))
    assert argv[:3] == ["torchrun", "--standalone", "--nproc_per_node=4"]
    assert argv[4:] == [
        *("--config", "runs/a b/config.yaml", "--model.weights", "runs/a b/weights.pth"),
        *("--output", "runs/a b-evaluation"),
    ]
    assert second == "curves:      tensorboard --logdir 'runs/a b'"


LOCAL, SERVER = "mlflow ui --backend-store-uri ", "MLflow at "


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        (None, f"{LOCAL}'sqlite:///{Path.cwd()}/runs/a b/mlflow.db'"),
        ("sqlite:////data/me@x/runs.db", f"{LOCAL}sqlite:////data/me@x/runs.db"),
        ("file:///data/me@x/mlruns", f"{LOCAL}file:///data/me@x/mlruns"),
        ("/data/me@x/mlruns", f"{LOCAL}/data/me@x/mlruns"),
        ("http://tracker:5000", f"{SERVER}http://tracker:5000"),
        ("https://ml:secret@tracker/path", f"{SERVER}https://tracker/path"),
        ("postgresql://ml:secret@db/mlflow", f"{SERVER}postgresql://db/mlflow"),
        ("mysql+pymysql://ml:s@/?: secret@db/x?y=1", f"{SERVER}mysql+pymysql://db/x"),
        ("postgresql://db/mlflow?user=ml&password=secret", f"{SERVER}postgresql://db/mlflow"),
        (
            "sqlite+pysqlcipher://:secret@/data/runs.db",
            f"{SERVER}sqlite+pysqlcipher:///data/runs.db",
        ),
        ("databricks", f"{SERVER}databricks"),
        ("databricks://profile", f"{SERVER}databricks://profile"),
    ],
)
def test_curves_in_mlflow(uri: str | None, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`mlflow ui` shows files; servers are named, without passwords."""
    monkeypatch.setattr(messages, "find_spec", lambda _: True)  # flask, which mlflow-skinny lacks
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if uri is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert messages.watch(tuning("--tracking.trackers", "[mlflow]")) == expected
    both = messages.watch(tuning("--tracking.trackers", "[tensorboard,mlflow]"))
    assert both == f"tensorboard --logdir 'runs/a b'; {expected}"


def test_the_package_for_curves_in_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(messages, "find_spec", lambda _: None)
    line = messages.watch(tuning("--tracking.trackers", "[mlflow]"))
    assert line.endswith("mlflow.db' (needs: pip install mlflow)")


@pytest.mark.parametrize(
    ("trackers", "expected"),
    [
        ("[tensorboard]", "tensorboard --logdir runs"),
        ("[tensorboard,wandb]", "tensorboard --logdir runs"),
        ("[wandb]", "tail -F 'runs/a b/metrics.jsonl'"),
        ("[]", "tail -F 'runs/a b/metrics.jsonl'"),
        ("[mlflow]", f"{LOCAL}'sqlite:///{Path.cwd()}/runs/a b/mlflow.db'"),
    ],
)
def test_the_curves_of_submitted_runs(
    trackers: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a sweep TensorBoard shows all runs, and the other commands the first one."""
    monkeypatch.setattr(messages, "find_spec", lambda _: True)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    jobs = [LocalJob[None]("runs/jobs", "12")]
    resources = options.resources(command_lines.finetune_parser("").parse_args([]))
    config = tuning("--tracking.trackers", trackers)
    lines = submit.submission_message(Path("runs"), config, jobs, resources).splitlines()
    assert [line for line in lines if "runs/a b" in line or "logdir" in line] == [
        f"curves       {expected}"
    ]


def test_errors_of_libraries_are_shown_without_logins() -> None:
    error = ValueError("request to https://ml:s@/cret@host:9/api failed (by a@b)\nmore")
    assert first_line(error) == "request to https://host:9/api failed (by a@b)"
    assert first_line(ValueError()) == "ValueError"


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (("--resume", "runs/other/checkpoints/step.pt"), ["--resume", "auto"]),
        (("--resume", "never"), ["--resume", "auto"]),
        (("--evaluation.num_images", "500"), ["--evaluation.num_images", "null"]),
        (
            ("--regularizer.gradient", "one_step"),
            ["--evaluation.attack.method", "deepfool+superdeepfool"],
        ),
    ],
)
def test_options_that_the_evaluation_must_not_inherit(
    argv: tuple[str, ...], expected: list[str]
) -> None:
    assert messages.evaluation_options(tuning(*argv))[6:] == expected


@pytest.mark.parametrize(
    "argv", [["--shard", "0/3", "--output", "a b"], ["--output", "a b", "--shard=0/3"]]
)
def test_the_next_shard(argv: list[str]) -> None:
    first, second = messages.after_shard(Path("a b"), argv, Shard(2, 3), 1).splitlines()
    options = shlex.split(first)[4:]
    assert options == ["--output", "a b", "--shard", "2/3"]
    assert second.endswith("report.py merge 'a b' --partial")


def test_the_options_of_an_index() -> None:
    train, val = Path("a b/train.parquet"), Path("val.parquet")
    lines = {
        (train, val): "use it: --data.train 'a b/train.parquet' --data.val val.parquet",
        (train, None): "use it: --data.train 'a b/train.parquet'",
        (val, val): "use it: --data.train val.parquet or --data.val val.parquet",
    }
    for indices, line in lines.items():
        assert messages.after_index(*indices) == line


def test_scripts_are_found_from_any_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path(messages.script("tools/report.py"))
    assert path.is_absolute()
    assert path.exists()
    monkeypatch.chdir(path.parents[1])
    assert messages.script("tools/report.py") == "tools/report.py"


def test_the_evaluation_of_a_submitted_run() -> None:
    argv = ["--nodes", "4", "--gpus-per-node", "8", "--partition", "P", "--time", "24h"]
    resources = options.resources(command_lines.finetune_parser("").parse_args(argv))
    command = shlex.split(finetune.evaluation_command(tuning(), resources))
    assert command[0] == "python"
    assert Path(command[1]).name == "evaluate.py"
    own, run_argv = options.split(command[2:])
    evaluated = options.resources(command_lines.evaluate_parser("").parse_args(own))
    assert (evaluated.nodes, evaluated.gpus_per_node, evaluated.partition) == (1, 1, "P")
    assert messages.evaluation_options(tuning()) == run_argv
    parse.check_names(EvaluateConfig, run_argv)


def test_an_interrupted_run_says_how_to_resume() -> None:
    assert messages.interrupted(" after step 3").endswith("saved: rerun the same command to resume")
    assert messages.interrupted(resume="a.pt").endswith(
        "with --resume auto instead of --resume a.pt"
    )
