"""evaluation.fgs.reference FOLDER: which evaluations it takes eps_ref from."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import DataConfig, EvaluateConfig, EvaluationConfig, FgsConfig
from pipeline.data import source
from pipeline.errors import UserError
from pipeline.evaluation.protocol import SPACES, preprocessing_of
from pipeline.evaluation.reference import resolve_reference


def config_of(folder: Path, **evaluation: Any) -> EvaluateConfig:
    fgs = FgsConfig(reference=str(folder), direction=evaluation.pop("direction", "exact"))
    options = EvaluationConfig(fgs=fgs, **evaluation)
    return EvaluateConfig(output="out", data=DataConfig(val="demo"), evaluation=options)


@pytest.fixture
def summary(tmp_path: Path) -> dict[str, Any]:
    """The summary of an evaluation with the options of `config_of`."""
    config = config_of(tmp_path)
    return {
        "fgs": {"eps_ref": 0.25},
        "num_missing": 0,
        "index": source.open_index(config, "val").fingerprint,
        "input": {**preprocessing_of(config.data, None).to_dict(), "decoder": "gpu"},
        "definition": {"space": SPACES["input"], "fgs": {"direction": "exact"}},
    }


def resolved(folder: Path, summary: dict[str, Any], **evaluation: Any) -> float | str | None:
    (folder / "summary.json").write_text(json.dumps(summary))
    return resolve_reference(config_of(folder, **evaluation)).evaluation.fgs.reference


def test_an_evaluation_like_this_one(
    tmp_path: Path, summary: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert resolved(tmp_path, summary) == 0.25
    assert capsys.readouterr().err == ""


def test_another_meaning_is_refused(tmp_path: Path, summary: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"space: network input.* -> pixels.*give a number"):
        resolved(tmp_path, summary, space="pixels")
    with pytest.raises(UserError, match="perturbed images cut to it"):
        resolved(tmp_path, summary, space="pixels", clip=True)
    with pytest.raises(UserError, match="direction: exact -> rounded"):
        resolved(tmp_path, summary, direction="rounded")
    del summary["definition"]["fgs"]["direction"]  # as earlier versions
    with pytest.raises(UserError, match="direction: rounded -> exact"):
        resolved(tmp_path, summary)
    assert resolved(tmp_path, summary, direction="rounded") == 0.25


def test_a_part_of_the_images_is_refused(tmp_path: Path, summary: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="lacks 3 images; evaluate them"):
        resolved(tmp_path, summary | {"num_missing": 3})


def test_other_images_give_a_warning(
    tmp_path: Path, summary: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    summary["index"] = "another"
    summary["input"]["crop"] += 4
    assert resolved(tmp_path, summary) == 0.25
    warning = capsys.readouterr().err
    assert "index: another -> " in warning
    assert "input.crop: " in warning
    assert "decoder" not in warning
