"""Weights in files: damage, new heads, and files that other programs read."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from pipeline.config import ModelConfig
from pipeline.errors import UserError
from pipeline.models import torchvision_nets
from pipeline.models.build import build
from pipeline.models.head import head_keys
from pipeline.models.weights import portable_state
from pipeline.runtime import torch_file
from pipeline.runtime.monitor import Monitor
from pipeline.training.checkpoint import load, write

HEADS = {
    "alexnet": "classifier.6",
    "convnext_tiny": "classifier.2",
    "densenet121": "classifier",
    "efficientnet_b0": "classifier.1",
    "googlenet": "fc",
    "inception_v3": "fc",
    "maxvit_t": "classifier.5",
    "mnasnet0_5": "classifier.1",
    "mobilenet_v2": "classifier.1",
    "mobilenet_v3_small": "classifier.3",
    "resnet18": "fc",
    "shufflenet_v2_x0_5": "fc",
    "squeezenet1_1": "classifier.1",
    "swin_t": "head",
    "swin_v2_t": "head",
    "vgg11": "classifier.6",
    "vit_b_32": "heads.head",
    "mlp": "5",
    "lenet": "7",
    "convnet": "11",
    "nin": "20",
    "caffe_alexnet": "fc8",
    "tests.helpers.nets:smooth": "7",
}


@pytest.mark.parametrize("name", HEADS)
def test_heads_are_found(name: str) -> None:
    config = ModelConfig(name=name)
    with torch.device("meta"):
        net, other = build(config, 10), build(config, 12)
    expected = {key for key in net.state_dict() if key.startswith(HEADS[name] + ".")}
    assert expected
    for state in (other.state_dict(), net.state_dict(), {}):
        assert set(head_keys(net, state, 10)) == expected


def test_a_regnet_has_a_head() -> None:  # it cannot be built without memory
    net = build(ModelConfig(name="regnet_y_400mf"), 10)
    assert head_keys(net, net.state_dict(), 10) == ["fc.weight", "fc.bias"]


@pytest.mark.parametrize("num_classes", [10, 12])
def test_a_new_head(tmp_path: Path, num_classes: int) -> None:
    path = tmp_path / "w.pth"
    source = build(ModelConfig(name="lenet"), num_classes)
    torch.save(source.state_dict(), path)
    config = ModelConfig(name="lenet", weights=str(path), new_head=True)
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(build(config, 10).state_dict())
    for key, value in source.state_dict().items():
        same, other = (torch.equal(states[0][key], state[key]) for state in states[1:])
        assert same
        is_head = key.startswith("7.")
        assert other is not is_head
        assert (states[0][key].shape == value.shape and torch.equal(states[0][key], value)) is not (
            is_head
        )


def test_a_new_head_for_a_body_alone(tmp_path: Path) -> None:
    state = build(ModelConfig(name="lenet"), 12).state_dict()
    body = {key: value for key, value in state.items() if not key.startswith("7.")}
    torch.save(body, tmp_path / "w.pth")
    config = ModelConfig(name="lenet", weights=str(tmp_path / "w.pth"), new_head=True)
    net = build(config, 10)
    assert torch.equal(net[0].weight, state["0.weight"])


def test_other_layers_that_do_not_fit_are_refused_with_a_new_head(tmp_path: Path) -> None:
    state = build(ModelConfig(name="lenet"), 12).state_dict()
    state["0.weight"] = state["0.weight"][:7]
    torch.save(state, tmp_path / "w.pth")
    config = ModelConfig(name="lenet", weights=str(tmp_path / "w.pth"), new_head=True)
    with pytest.raises(UserError, match=r"lenet: 0\.weight is \(7, 1, 5, 5\), the net has \(20,"):
        build(config, 10)


def test_auxiliary_classifiers_in_a_file_are_left_out(tmp_path: Path) -> None:
    source = torchvision.models.googlenet(num_classes=10, aux_logits=True, init_weights=False)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    net = build(ModelConfig(name="googlenet", weights=str(tmp_path / "w.pth")), 10)
    assert torch.equal(net.fc.weight, source.fc.weight)


def robustness_checkpoint(net: nn.Module) -> dict[str, Any]:
    """What robustness.train.train_model (MadryLab) saves: the net inside an AttackerModel, inside
    DataParallel, with the states of optimiser and schedule."""
    normalize = {"new_mean": torch.full((1, 1, 1), 0.25), "new_std": torch.full((1, 1, 1), 0.5)}
    parts = (("normalizer.", normalize), ("model.", net.state_dict()))
    copy = (("attacker.normalize.", normalize), ("attacker.model.", net.state_dict()))
    state = {f"module.{part}{key}": v for part, keys in (*parts, *copy) for key, v in keys.items()}
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 30)
    return {
        "model": OrderedDict(state),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "epoch": 90,
        "amp": "N/A",
    }


@pytest.mark.parametrize("zipped", [True, False])  # torch before 1.6 wrote no zip files
def test_nets_of_the_library_robustness(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], zipped: bool
) -> None:
    path = tmp_path / "resnet18_l2_eps0.01.ckpt"
    source = build(ModelConfig(name="lenet"), 10)
    checkpoint = robustness_checkpoint(source)
    torch.save(checkpoint, path, _use_new_zipfile_serialization=zipped)
    net = build(ModelConfig(name="lenet", weights=str(path)), 10)
    assert torch.equal(net[7].weight, source[7].weight)
    text = capsys.readouterr().out
    assert f"{path} is of the library robustness" in text
    assert "trained with data.mean [0.25] and data.std [0.5]" in text
    torch.save(checkpoint | {"adv_prec1": np.float64(50.0)}, path)
    with pytest.raises(UserError, match=r"eps0\.01\.ckpt holds a Python object besides tensors"):
        build(ModelConfig(name="lenet", weights=str(path)), 10)


def test_infinity_in_a_mask_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    config = ModelConfig(name="tests.helpers.nets:masked", weights=str(path))
    state = build(ModelConfig(name="tests.helpers.nets:masked"), 10).state_dict()
    assert state["mask"].isinf().any()
    torch.save(state, path)
    build(config, 10)
    state["mask"][0] = torch.nan
    torch.save(state, path)
    with pytest.raises(UserError, match=r"w\.pth holds numbers that are not finite in mask;"):
        build(config, 10)


def test_weights_that_other_programs_read(tmp_path: Path) -> None:
    net = build(ModelConfig(name="lenet"), 10).to(memory_format=torch.channels_last)
    net.tied = nn.Linear(500, 10)
    net.tied.weight = net[7].weight
    state = portable_state(net)
    assert list(state) == list(net.state_dict())
    write(tmp_path / "weights.pth", state)
    state = torch.load(tmp_path / "weights.pth", weights_only=True)
    save_file(state, tmp_path / "weights.safetensors")
    for key, value in net.state_dict().items():
        assert state[key].is_contiguous()
        assert torch.equal(state[key], value)
    assert net[2].weight.is_contiguous(memory_format=torch.channels_last)


def test_files_without_checksums_are_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.ones(3)}, tmp_path / "w.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch_file.load(tmp_path / "w.pth")["a"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("part", ["tensor", "directory"])
def test_damage_to_a_file_is_noticed(tmp_path: Path, part: str) -> None:
    path = tmp_path / "w.pth"
    torch.save({"a": torch.ones(4000)}, path)
    data = bytearray(path.read_bytes())
    start = len(data) // 2 if part == "tensor" else data.index(b"PK\x01\x02")
    data[start : start + 40] = bytes(40)
    path.write_bytes(data)
    with pytest.raises(torch_file.UnreadableFile, match="is damaged"):
        torch_file.load(path)
    with pytest.raises(UserError, match=r"the checkpoint .*w\.pth is damaged.*; remove it"):
        load(path)


def test_a_table_of_nets_without_perturbations(capsys: pytest.CaptureFixture[str]) -> None:
    numbers = {"num_samples": 4, "accuracy": 0.0, "rho2": 0.0, "num_unflipped": 0}
    with Monitor(None, shown=True) as monitor:
        monitor.table(numbers, numbers | {"num_nonfinite": 3})
    rows = [line.split("│")[1:-1] for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert ["rho2, relative", "1", "-"] in [[cell.strip() for cell in row] for row in rows]
    assert ["not finite", "0", "3"] in [[cell.strip() for cell in row] for row in rows]


def test_weights_in_a_file_do_not_import_torchvision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The import takes as long as that of torch, in each start of an evaluation."""
    net = build(ModelConfig(name="mlp"), 10)
    save_file(portable_state(net), tmp_path / "w.safetensors")

    def refuse() -> None:
        raise AssertionError("torchvision was imported")

    monkeypatch.setattr(torchvision_nets, "_zoo", refuse)
    build(ModelConfig(name="mlp", weights=str(tmp_path / "w.safetensors")), 10)
