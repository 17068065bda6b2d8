"""tools/export.py: what it writes, loaded without this project; what it refuses."""

import csv
import json
import os
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from torch import nn

from pipeline.config import ModelConfig
from pipeline.data.index import Index
from pipeline.errors import UserError
from pipeline.models.build import build
from pipeline.models.weight_classes import recorded_classes
from tests.helpers.exports import EXPORT, export, loaded_net, run_card
from tests.helpers.images import picture
from tests.helpers.in_process import EVALUATE, call, succeed
from tests.helpers.runs import Run
from tests.helpers.tiny import finished

pytest.importorskip("jinja2", reason="needs the extra export")
hub: Any = pytest.importorskip("huggingface_hub", reason="needs the extra export")


@pytest.fixture(scope="module")
def finetuning(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tuning with two evaluations of its weights, by one attack and by two."""
    folder = tmp_path_factory.mktemp("export") / "run"
    finished(folder)
    options = ("--config", folder / "config.yaml", "--model.weights", folder / "weights.pth")
    few = ("--evaluation.num_images", 20, "--output")
    succeed(EVALUATE, *options, *few, folder / "one attack")
    attacks = ("--evaluation.attack.method", "deepfool+superdeepfool")
    succeed(EVALUATE, *options, *attacks, *few, folder / "two")
    return folder


@pytest.fixture(scope="module")
def exported(finetuning: Path) -> Path:
    return export(finetuning, finetuning.parent / "exported", "--license", "apache-2.0")


@pytest.fixture(scope="module")
def squeezenet(
    squeezenet_weights: Path, ilsvrc_val: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The evaluation of torchvision's SqueezeNet on four photos."""
    folder = tmp_path_factory.mktemp("squeezenet") / "evaluation"
    options = ("--model.name", "squeezenet1_1", "--model.weights", squeezenet_weights)
    data = ("--data.val", ilsvrc_val, "--model.num_classes", 1000, "--data.check_classes", "false")
    few = ("--evaluation.num_images", 4, "--evaluation.attack.num_candidates", 2)
    succeed(EVALUATE, *options, *data, *few, "--output", folder)
    return folder


def net_of(folder: Path, name: str, num_classes: int, weights: Path) -> nn.Module:
    return build(ModelConfig(name=name, weights=str(weights)), num_classes).eval()


def texts(folder: Path) -> dict[str, str]:
    """The text files of an export, by path."""
    kinds = {".md", ".json", ".yaml", ".csv"}
    paths = [path for path in folder.rglob("*") if path.suffix in kinds]
    return {str(path.relative_to(folder)): path.read_text() for path in paths}


def test_the_metadata_has_every_metric(exported: Path, finetuning: Path) -> None:
    card = hub.ModelCard.load(exported / "README.md")
    summary = json.loads((finetuning / "two" / "summary.json").read_text())
    methods = summary["diagnostics"]["methods"]
    results = card.data.eval_results
    assert results is not None
    assert {(r.metric_config, r.metric_name): r.metric_value for r in results}.items() >= {
        ("one attack", "accuracy"): summary["accuracy"],
        ("two", "accuracy"): summary["accuracy"],
        ("two", "rho2 by deepfool"): methods["deepfool"]["mean"],
        ("two", "rho2 by superdeepfool"): methods["superdeepfool"]["mean"],
        ("two", "rho2, the smallest of these"): summary["rho2"],
    }.items()
    metadata = hub.repocard.metadata_load(exported / "README.md")
    assert metadata is not None
    _, parsed = hub.repocard.model_index_to_eval_results(metadata["model-index"])
    assert parsed == results
    assert metadata["license"] == "apache-2.0"


def test_nothing_shows_the_machine(exported: Path, finetuning: Path) -> None:
    written = texts(exported)
    assert {"README.md", "config.json", "training.yaml"} < set(written)
    assert {"evaluations/two/summary.json", "evaluations/two/curve.csv"} < set(written)
    for name, text in written.items():
        assert str(finetuning.parent) not in text, name
    options = yaml.safe_load(written["training.yaml"])
    assert "output" not in options
    assert options["train"]["epochs"] > 0
    assert not list(exported.rglob("*.npz"))  # perturbed images
    rows = pq.read_table(exported / "evaluations" / "one attack" / "samples.parquet")
    assert rows.num_rows == 20


def test_a_board_shows_the_evaluations_of_an_export(exported: Path, tmp_path: Path) -> None:
    succeed("tools/board.py", exported, "--out", tmp_path / "board", "--no-sheets")
    rows = list(csv.DictReader((tmp_path / "board" / "board.csv").open()))
    assert [row["name"] for row in rows] == [exported.name] * 2
    assert {row["page"] for row in rows} == {"1", "2"}


def test_the_export_is_weights_of_this_project(exported: Path, finetuning: Path) -> None:
    weights, model = finetuning / "weights.pth", exported / "model.safetensors"
    assert recorded_classes(model) == recorded_classes(weights)
    again = run_command(exported, "evaluations/two", "demo")
    one, other = ((f / "samples.parquet").read_bytes() for f in (again, finetuning / "two"))
    assert one == other


def run_command(exported: Path, evaluation: str, val: str) -> Path:
    """Run the card's command that evaluates again; the folder of its output."""
    lines = (exported / "README.md").read_text().splitlines()
    (command,) = [line for line in lines if f'"{evaluation}/config.yaml"' in line]
    words = shlex.split(command.split("`")[1].replace("INDEX", val))
    output = exported.parent / f"{exported.name} again"
    before = Path.cwd()
    os.chdir(exported)
    try:
        assert words[:2] == ["python", "PROJECT/pipeline/evaluate.py"]
        assert words[-2:] == ["--output", "../again"]
        succeed(EVALUATE, *words[2:-1], output)
    finally:
        os.chdir(before)
    return output


def test_the_command_of_a_sharded_evaluation_with_a_mean_image(
    finetuning: Path, tmp_path: Path
) -> None:
    mean, folder = tmp_path / "my mean.npy", tmp_path / "sharded"
    np.save(mean, np.full((1, 28, 28), 0.1307))
    options = ("--config", finetuning / "config.yaml", "--evaluation.num_images", 6)
    weights = ("--model.weights", finetuning / "weights.pth", "--data.mean", mean)
    for shard in ("1/2", "0/2"):
        succeed(EVALUATE, *options, *weights, "--shard", shard, "--output", folder)
    out = export(folder, tmp_path / "out", "--onnx")
    again = run_command(out, "evaluations/sharded", "demo")
    one, other = ((f / "samples.parquet").read_bytes() for f in (again, folder))
    assert one == other
    assert np.load(out / "mean.npy").shape == (1, 28, 28)


def test_a_torchvision_net_by_torchvision_alone(
    squeezenet: Path, squeezenet_weights: Path, tmp_path: Path
) -> None:
    out = export(squeezenet, tmp_path / "out")
    net, plain = loaded_net(out), net_of(out, "squeezenet1_1", 1000, squeezenet_weights)
    image = picture(300, 260)
    with torch.no_grad():
        x = run_card(out, 1)["preprocess"](image)[None]
        assert x.shape == (1, 3, 224, 224)
        assert torch.equal(net(x), plain(x))
    config = json.loads((out / "config.json").read_text())
    assert len(config["label_names"]) == config["num_classes"] == 1000
    assert config["label_names"][0].startswith("tench")


@pytest.mark.parametrize(
    ("run", "channels"),
    [("finetuning", 1), pytest.param("squeezenet", 3, marks=pytest.mark.slow)],
)
def test_onnx(run: str, channels: int, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """The file classifies decoded images as torch does with the card's preprocessing, up to the
    rounding of resized pixels."""
    onnxruntime: Any = pytest.importorskip("onnxruntime", reason="needs the extra export")
    out = export(request.getfixturevalue(run), tmp_path / "out", "--onnx")
    assert "On\n10 images its logits agree" in (out / "README.md").read_text()
    net, preprocess = loaded_net(out), run_card(out, 1)["preprocess"]
    session = onnxruntime.InferenceSession(out / "model.onnx")
    for width, height in ((300, 260), (100, 333)):
        image = picture(width, height).convert("L" if channels == 1 else "RGB")
        pixels = np.asarray(image).reshape(1, height, width, channels).repeat(2, axis=0)
        (logits,) = session.run(None, {"images": pixels})
        with torch.no_grad():
            expected = net(preprocess(image)[None]).numpy()
        assert len(logits) == 2
        assert np.abs(logits - expected).max() < 0.01 * np.abs(expected).max()


def test_a_dry_run_writes_nothing(
    finetuning: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_token(monkeypatch, tmp_path)
    options = ("--push", "some/net", "--dry-run")
    printed = succeed(EXPORT, finetuning, "--out", tmp_path / "out", *options)
    assert "model.safetensors" in printed
    assert "no token" in printed
    assert not (tmp_path / "out").exists()


def without_token(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(folder / "token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def assert_refused(line: str, *options: object) -> None:
    ended = call(EXPORT, *options)
    assert ended.code == 2, ended.stderr
    assert ended.stderr.startswith("error: ")
    assert line in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_an_earlier_export_is_replaced_only_if_nothing_is_lost(
    finetuning: Path, tmp_path: Path
) -> None:
    out = export(finetuning, tmp_path / "out", "--name", "first")
    assert_refused("--replace", finetuning, "--out", out)
    export(finetuning, out, "--replace", "--name", "second")
    assert "# second" in (out / "README.md").read_text()
    assert list(tmp_path.iterdir()) == [out]
    (out / "LICENSE").write_text("mine")
    with (out / "README.md").open("a") as card:
        card.write("edited")
    assert_refused("LICENSE, README.md", finetuning, "--out", out, "--replace")
    assert (out / "LICENSE").read_text() == "mine"
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").touch()
    assert_refused("is no export", finetuning, "--out", other, "--replace")
    assert_refused("is a file", finetuning, "--out", other / "thesis.tex", "--dry-run")
    assert (other / "thesis.tex").exists()


def test_mistakes(
    finetuning: Path, squeezenet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = ("--out", tmp_path / "out")
    assert_refused("summary.json", tmp_path, *out)
    assert_refused("other weights", finetuning, *out, "--evaluation", squeezenet)
    resized = tmp_path / "resized"
    options = (
        "--config",
        finetuning / "config.yaml",
        "--model.weights",
        finetuning / "weights.pth",
    )
    few = ("--evaluation.num_images", 3, "--data.resize_size", 40, "--output", resized)
    succeed(EVALUATE, *options, *few)
    line = "another preprocessing (resize 40, not "
    assert_refused(line, finetuning, *out, "--evaluation", resized)
    reference = finetuning / "reference.pth"
    assert_refused("--weights", finetuning / "two", *out, "--weights", reference)
    assert_refused("USER/NAME", finetuning, *out, "--push", "name")
    without_token(monkeypatch, tmp_path)
    assert_refused("hf auth login", finetuning, *out, "--push", "some/net")
    assert not (tmp_path / "out").exists()


def test_a_hub_that_cannot_be_reached(
    finetuning: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The export stays, and the line says how to send it."""
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", "http://127.0.0.1:9")
    out = tmp_path / "out"
    assert_refused("was not sent", finetuning, "--out", out, "--push", "some/net")
    assert (out / "README.md").exists()


def test_a_dry_run_of_a_push_in_a_process(run: Run, finetuning: Path, tmp_path: Path) -> None:
    """In a process where nothing else has imported parts of huggingface_hub."""
    out = ("--out", tmp_path / "out", "--dry-run", "--push")
    done = run(EXPORT, finetuning, *out, "some/net")
    assert done.returncode == 0, done.stderr
    assert "then to some/net" in done.stdout
    done = run(EXPORT, finetuning, *out, "net")
    assert done.stderr == "error: --push must be USER/NAME, got net\n"


def test_an_incomplete_evaluation(finetuning: Path, photos: Index, tmp_path: Path) -> None:
    """Images are missing in it: one of two shards has ended, and was merged."""
    folder = tmp_path / "half"
    options = ("--config", finetuning / "config.yaml", "--evaluation.num_images", 4)
    weights = ("--model.weights", finetuning / "weights.pth")
    succeed(EVALUATE, *options, *weights, "--shard", "0/2", "--output", folder)
    succeed("tools/report.py", "merge", folder, "--partial")
    assert_refused("lacks 2 images", folder, "--out", tmp_path / "out")


def test_the_images_that_were_measured(finetuning: Path, tmp_path: Path) -> None:
    """Not those that were asked for; and no limits of DeepFool if it was not used."""
    from exporting import facts
    from exporting.source import read_run

    shutil.copytree(finetuning / "two", tmp_path / "two")
    path = tmp_path / "two" / "summary.json"
    summary = json.loads(path.read_text())
    indexed = summary["num_indexed"]

    def stated(**changes: Any) -> dict[str, Any]:
        path.write_text(json.dumps(summary | changes))
        return facts.evaluation_facts("two", read_run(path.parent))

    name = f"demo, 20 of {indexed:,} images"
    assert stated()["data_set"] == name
    assert stated(num_images=indexed + 1)["data_set"] == name
    assert stated(skipped=["a", "b"])["data_set"] == f"{name} (2 did not decode)"
    attack = stated()["attack"]
    assert attack.endswith(" candidate classes, at most 5 iterations")
    definition = summary["definition"] | {"methods": ["ddn, 100 steps", "fmn, 100 steps"]}
    assert stated(definition=definition)["attack"] == "ddn, 100 steps, then fmn, 100 steps"


def test_logits_that_are_not_finite_are_no_agreement(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra export")
    from exporting import onnx_file
    from exporting.source import ExportedNet
    from pipeline.config import DataConfig

    class Nan(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean(dim=(1, 2, 3))[:, None] * float("nan")

    data, model = DataConfig(crop_size=8, resize_size=8), ModelConfig(name="nan")
    net = ExportedNet(net=Nan(), model=model, data=data, num_classes=1, classes=None, training=None)
    image = np.asarray(picture(9, 8))
    with pytest.raises(UserError, match=r"model\.onnx: its logits differ from torch's by inf"):
        onnx_file.write_onnx(net, [image], Path())
