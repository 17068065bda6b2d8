"""Small parts: options, schedule, monitor, checkpoints, ranks, signals."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from launchers import jobs
from launchers.run_status import Submission
from launchers.slurm_states import State
from pipeline.config import (
    CONFIGS,
    CheckpointConfig,
    EvaluateConfig,
    FinetuneConfig,
    RuntimeConfig,
    ScheduleConfig,
    TrainConfig,
    parse,
)
from pipeline.data.classes import Classes
from pipeline.errors import UserError, exit_on_user_error, exit_with_error
from pipeline.runtime import config_file, signals
from pipeline.runtime.distributed import _rank_from_env, distributed_session
from pipeline.runtime.monitor import Monitor
from pipeline.training.checkpoint import Checkpoints, read, write
from pipeline.training.schedule import Schedule
from reproduction.experiments import EXPERIMENTS
from tests.helpers.runs import ROOT, environment


def test_every_shipped_configuration_is_valid() -> None:
    paths = sorted(CONFIGS.glob("*.yaml"))
    wanted = {"demo", *EXPERIMENTS, *(Path(e.config).stem for e in EXPERIMENTS.values())}
    assert wanted == {path.stem for path in paths}
    for path in paths:
        config = parse.parse(FinetuneConfig, "", ["--config", str(path)])
        assert config.output == f"runs/{path.stem}"
        assert parse.parse(EvaluateConfig, "", ["--config", str(path)]).model == config.model


def test_command_line_wins_over_yaml_over_defaults(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("optim: {lr: 5e-4, momentum: 0.5}\n")
    config = parse.parse(FinetuneConfig, "", ["--config", str(path), "--optim.momentum", "0.7"])
    assert (config.optim.lr, config.optim.momentum, config.optim.weight_decay) == (5e-4, 0.7, 5e-4)


def test_saved_configuration_reads_back(tmp_path: Path) -> None:
    config = parse.parse(FinetuneConfig, "", ["--data.mean", "[0.5]", "--output", "x"])
    config_file.save(config, tmp_path / "config.yaml")
    assert parse.parse(FinetuneConfig, "", ["--config", str(tmp_path / "config.yaml")]) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {nam: x}", "nam"),
        ("optim: {lr: fast}", "optim.lr"),
        ("train: {batch_size: 0}", "train.batch_size must be at least 1, got 0"),
        ("data: {mean: [0.5, 0.5]}", "data.mean must be 3 numbers"),
        ("model: [", "bad.yaml, line 1: no valid YAML"),
        (
            "regularizer: {attack: {num_candidates: 1}}",
            "bad.yaml: regularizer.attack.num_candidates must be at least 2, got 1",
        ),
    ],
)
def test_mistakes_in_yaml(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(SystemExit) as ended:
        parse.parse(FinetuneConfig, "", ["--config", str(path)])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_help_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse.parse(FinetuneConfig, "text", ["--help"])
    text = capsys.readouterr().out
    for option in parse.flatten(parse.to_dict(FinetuneConfig())):
        assert f"--{option} " in text, option
    described = text[text.index("options:") :]
    assert described.count("default:") >= len(parse.flatten(parse.to_dict(FinetuneConfig())))
    assert "in pixels" in described


def schedule(
    steps_per_epoch: int = 10, clean: int = 1, epochs: int = 4, **options: object
) -> Schedule:
    config = FinetuneConfig(schedule=ScheduleConfig(**options))  # type: ignore[arg-type]
    config.train = TrainConfig(pretrain_epochs=clean, epochs=epochs, pretrain_lr=0.3)
    config.optim.lr = 1.0
    return Schedule(config, steps_per_epoch)


def test_schedules() -> None:
    halved = schedule(kind="step", milestones=[2.0], gamma=0.5)
    assert [halved.lr(step) for step in (0, 9, 10, 29, 30, 49)] == [0.3, 0.3, 1, 1, 0.5, 0.5]
    assert [halved.is_finetuning_step(9), halved.is_finetuning_step(10)] == [False, True]
    by_steps = schedule(kind="step", unit="steps", milestones=[5], warmup=2)
    assert [by_steps.lr(10 + k) for k in (0, 1, 2, 4, 5)] == [0.5, 1, 1, 1, 0.5]
    cosine = schedule(kind="cosine", clean=0)
    assert cosine.lr(0) == 1
    assert cosine.lr(20) == pytest.approx(0.5)
    assert cosine.lr(39) < 0.01
    linear = schedule(kind="linear", clean=0)
    assert linear.lr(10) == pytest.approx(0.75)
    assert schedule(kind="constant").lr(40) == 1


def test_evaluations_are_before_after_and_as_asked() -> None:
    plan = schedule(epochs=5)
    plan.config.evaluation.every_epochs = 2
    due = [step for step in range(plan.total_steps + 1) if plan.should_evaluate(step)]
    assert due == [10, 30, 50, 60]


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


def test_checkpoints_keep_the_newest_and_the_best(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path, CheckpointConfig(keep_last=2))
    for step in (5, 10, 15):
        kept.save(step, {"step": step}, best=step == 10)
    assert [path.name for path in kept.all()] == ["step-000000010.pt", "step-000000015.pt"]
    assert torch.load(kept.best_path, weights_only=True)["step"] == 10
    assert kept.find("auto") == kept.all()[-1]
    assert Checkpoints(tmp_path / "new", CheckpointConfig()).find("never") is None


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "step.pt"
    write(path, {"step": 1})
    with pytest.raises(Exception, match="pickle"):
        write(path, {"step": lambda: None})  # fails half-way through the file
    assert torch.load(path, weights_only=True) == {"step": 1}


def test_a_file_that_is_no_checkpoint(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="no checkpoint of this program"):
        read(tmp_path / "x.pt", FinetuneConfig(), "")


def test_place_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "SLURM_NTASKS")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    assert _rank_from_env() == (0, 1, 0, 1)
    slurm = {"SLURM_NTASKS": 8, "SLURM_PROCID": 5, "SLURM_LOCALID": 1, "SLURM_NNODES": 2}
    for name, value in slurm.items():
        monkeypatch.setenv(name, str(value))
    assert _rank_from_env() == (5, 8, 1, 4)
    for name, value in zip(names, (3, 4, 1, 2), strict=False):
        monkeypatch.setenv(name, str(value))
    assert _rank_from_env() == (3, 4, 1, 2)


def test_a_rank_without_a_gpu_prints_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rank 0 has a GPU, so it does not know of the error."""
    for name, value in {"RANK": 1, "WORLD_SIZE": 2, "LOCAL_RANK": 1}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(SystemExit), exit_on_user_error(), distributed_session(RuntimeConfig()):
        pass
    assert (
        "error: local rank 1 has no GPU: torch sees 1; start at most 1" in capsys.readouterr().err
    )


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
    going = [State("RUNNING", "here")]
    assert "starting" in jobs._cells(run, going)
    assert "starting" not in jobs._cells(run, [State("PENDING", "here")])
    with Monitor(tmp_path, shown=True) as monitor:
        monitor.start_progress("evaluating", 200, at="step 24/48")
    assert "evaluating 0/200, step 24/48" in jobs._cells(run, going)
    values = json.loads((tmp_path / "progress.json").read_text())
    del values["at"]  # earlier versions do not write it
    (tmp_path / "progress.json").write_text(json.dumps(values))
    assert "evaluating 0/200" in jobs._cells(run, going)


def test_yaml_of_every_default_is_plain(tmp_path: Path) -> None:
    config_file.save(FinetuneConfig(), tmp_path / "c.yaml")
    assert yaml.safe_load((tmp_path / "c.yaml").read_text())["regularizer"]["c"] == 500


@pytest.mark.parametrize(
    "script", ["pipeline/finetune.py", "pipeline/evaluate.py", "launchers/finetune.py"]
)
def test_a_misspelt_option_is_refused_before_torch_is_imported(script: str) -> None:
    lines = (
        f"import runpy, sys; sys.argv = [{script!r}, '--optim.lrr', '1']",
        *("try:", f"    runpy.run_path({str(ROOT / script)!r}, run_name='__main__')"),
        *("except SystemExit as end:", "    print(end.code, 'torch' in sys.modules)"),
    )
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, env=environment()
    )
    assert done.stdout.strip() == "2 False", done.stdout + done.stderr


def test_what_takes_long_to_import_is_imported_where_it_is_needed() -> None:
    script = (
        "import sys, pipeline.finetune, pipeline.evaluate\n"
        "print([name for name in ('torchvision', 'matplotlib', 'scipy', 'torch._dynamo') "
        "if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment()
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
    script = "import sys, launchers.jobs; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment()
    )
    assert done.stdout.strip() == "False", done.stdout + done.stderr


def test_a_checkpoint_of_other_classes_is_refused(tmp_path: Path) -> None:
    config, classes = FinetuneConfig(), Classes(["cat", "dog"], ["n1", "n2"])
    state: dict = {"version": 1, "config": parse.to_dict(config), "index": "f", "step": 3}
    state |= {"model": {}, "optimizer": {}, "scaler": {}, "history": [], "seconds": 0.0}
    path = tmp_path / "step.pt"
    torch.save(state | {"classes": classes.to_dict()}, path)
    assert read(path, config, "f", classes)["step"] == 3
    with pytest.raises(UserError, match=r"data\.train: other classes: label 1 is 'n3', not 'n2'"):
        read(path, config, "f", Classes(["cat", "fox"], ["n1", "n3"]))
    del state["config"]["data"]["check_classes"]  # made before classes were recorded
    torch.save(state, path)
    assert read(path, config, "f", Classes(["cat", "fox"], ["n1", "n3"]))["step"] == 3


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
