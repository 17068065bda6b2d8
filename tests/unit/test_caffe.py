"""tools/caffe.py: .caffemodel files written here from the wire format, read back."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config import ModelConfig
from pipeline.models.build import build
from tests.helpers.runs import Run, expect_error

SCRIPT = "tools/caffe.py"


def varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def field(number: int, content: bytes | int) -> bytes:
    """One field of a protobuf message: a number, or bytes with their length."""
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def blob(array: np.ndarray, old: bool) -> bytes:
    """BlobProto: num to width 1 to 4 (old) or shape 7; data 5, packed floats."""
    data = field(5, struct.pack(f"<{array.size}f", *array.ravel()))
    if not old:
        return field(7, field(1, b"".join(varint(size) for size in array.shape))) + data
    shape = (1,) * (4 - array.ndim) + array.shape
    return b"".join(field(i, size) for i, size in enumerate(shape, 1)) + data


def caffemodel(layers: dict[str, list[np.ndarray]], old: bool) -> bytes:
    """NetParameter: name 1, and layers 2 (name 4, blobs 6) or layer 100 (name 1, blobs 7)."""
    number, name_at, blobs_at = (2, 4, 6) if old else (100, 1, 7)
    found = field(1, b"AlexNet")
    found += field(number, field(name_at, b"relu1"))  # a layer without weights
    for name, arrays in layers.items():
        blobs = b"".join(field(blobs_at, blob(array, old)) for array in arrays)
        # A field that the reader does not know (V1's top, or type) is skipped.
        found += field(number, field(name_at, name.encode()) + field(3, b"top") + blobs)
    return found


@pytest.fixture
def layers() -> dict[str, list[np.ndarray]]:
    """Layers of a small net: a convolution on three channels, one in two groups, a matrix."""
    rng = np.random.default_rng(0)
    shapes = {"conv1": (4, 3, 2, 2), "conv2": (6, 2, 3, 3), "fc8": (5, 6)}
    return {
        name: [rng.normal(size=s).astype(np.float32), rng.normal(size=s[0]).astype(np.float32)]
        for name, s in shapes.items()
    }


@pytest.mark.parametrize("old", [True, False])
def test_a_caffemodel(run: Run, layers: dict, tmp_path: Path, old: bool) -> None:
    source, target = tmp_path / "net.caffemodel", tmp_path / "net.pth"
    source.write_bytes(caffemodel(layers, old))
    done = run(SCRIPT, source, target)
    assert done.returncode == 0, done.stderr
    assert "conv2.weight     (6, 2, 3, 3)" in done.stdout
    state = torch.load(target, weights_only=True)
    assert list(state) == [f"{n}.{p}" for n in layers for p in ("weight", "bias")]
    for name, (weight, bias) in layers.items():
        expected = weight[:, ::-1] if name == "conv1" else weight  # BGR to RGB
        np.testing.assert_array_equal(state[f"{name}.weight"].numpy(), expected)
        np.testing.assert_array_equal(state[f"{name}.bias"].numpy(), bias)


def test_a_dictionary_of_arrays(run: Run, layers: dict, tmp_path: Path) -> None:
    named = {
        f"{n}_{p}": a for n, arrays in layers.items() for p, a in zip("wb", arrays, strict=True)
    }
    np.savez(tmp_path / "net.npz", **named)
    (tmp_path / "net.caffemodel").write_bytes(caffemodel(layers, old=False))
    for name in ("net.npz", "net.caffemodel"):
        assert run(SCRIPT, tmp_path / name, tmp_path / f"{name}.pth").returncode == 0
    one, two = (
        torch.load(tmp_path / f"{name}.pth", weights_only=True)
        for name in ("net.npz", "net.caffemodel")
    )
    assert all(torch.equal(value, two[name]) for name, value in one.items())


@pytest.mark.slow
def test_the_whole_alexnet_loads(run: Run, tmp_path: Path) -> None:
    """The reverse conversion of one of our nets is read back; Caffe's images are BGR, ours RGB."""
    torch.manual_seed(0)
    net = build(ModelConfig(name="caffe_alexnet"), 7).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.01)
    state = {name: value.numpy() for name, value in net.state_dict().items()}
    names = dict.fromkeys(name.split(".")[0] for name in state)
    layers = {name: [state[f"{name}.weight"], state[f"{name}.bias"]] for name in names}
    (tmp_path / "net.caffemodel").write_bytes(caffemodel(layers, old=True))
    assert run(SCRIPT, tmp_path / "net.caffemodel", tmp_path / "net.pth").returncode == 0
    ours = build(ModelConfig(name="caffe_alexnet", weights=str(tmp_path / "net.pth")), 7).eval()
    bgr = 100 * torch.randn(2, 3, 227, 227)
    with torch.no_grad():
        torch.testing.assert_close(ours(bgr.flip(1)), net(bgr), rtol=1e-4, atol=1e-5)


def test_mistakes(run: Run, layers: dict, tmp_path: Path) -> None:
    path, target = tmp_path / "net.caffemodel", tmp_path / "net.pth"
    whole = caffemodel(layers, old=True)
    cases = [
        (whole[:-10], (), "is not a .caffemodel, or is cut short"),
        (b"", (), "contains no weights"),
        (whole, ("--first", "conv0"), "--first conv0: the layers are conv1, conv2, fc8"),
    ]
    for content, options, said in cases:
        path.write_bytes(content)
        assert said in expect_error(run, path, target, *options, script=SCRIPT)
        assert not target.exists()
    assert "cannot be read" in expect_error(run, tmp_path / "no.npz", target, script=SCRIPT)
