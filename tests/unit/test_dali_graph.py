"""What decodes images, and where: `data.decoder` and `data.hw_decoder_load`.

DALI defines a graph for a GPU without one; only building the pipeline needs it.
"""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.config import DataConfig
from pipeline.data.batches import evaluation_specs
from pipeline.data.dali_graph import GraphOptions, define_pipeline
from pipeline.data.index import Index
from pipeline.data.loader import Loader
from pipeline.data.mean_image import mean_of
from pipeline.data.source import check_decoder
from pipeline.errors import UserError

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def graph(config: DataConfig, device: torch.device, has_arrays: bool = False) -> Any:
    """A pipeline whose operators are known, but not its backend; as DALI 2.4 names them."""
    options = GraphOptions(config, mean_of(config), device, 4, 2, has_arrays)
    pipeline: Any = define_pipeline(lambda: (), options)
    pipeline._build_graph()
    return pipeline


def operators(pipeline: Any) -> dict[str, str]:
    """Names of the operators but DALI's own, and what they run on: cpu, mixed or gpu."""
    specs = [operator.spec for operator in pipeline._ops]
    named = {str(spec).split(":")[0].removeprefix("OpSpec for "): str(spec) for spec in specs}
    return {
        name: text.partition("device: ")[2].split()[0]
        for name, text in named.items()
        if name not in ("ExternalSource", "_conditional__Split", "_conditional__Merge")
    }


def output_devices(pipeline: Any) -> list[str]:
    return [output.device for output in pipeline._graph_outputs]


def decoder_arguments(pipeline: Any) -> str:
    return next(str(o.spec) for o in pipeline._ops if "decoders__ImageSlice" in str(o.spec))


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("has_arrays", [False, True])
@pytest.mark.parametrize(
    ("decoder", "device", "decodes_on", "computes_on"),
    [
        ("auto", CPU, "cpu", "cpu"),
        ("cpu", CPU, "cpu", "cpu"),
        ("auto", GPU, "mixed", "gpu"),
        ("gpu", GPU, "mixed", "gpu"),
        ("cpu", GPU, "cpu", "cpu"),
    ],
)
def test_every_operator_runs_where_images_are_decoded(
    decoder: Any,
    device: torch.device,
    decodes_on: str,
    computes_on: str,
    has_arrays: bool,
    half: bool,
) -> None:
    pipeline = graph(DataConfig(decoder=decoder, half_input=half), device, has_arrays)
    devices = operators(pipeline)
    assert devices.pop("decoders__ImageSlice") == decodes_on
    assert {"Resize", "CropMirrorNormalize"} <= devices.keys()
    assert ("Flip" in devices) == has_arrays
    assert ("Transpose" in devices) == (has_arrays and half and device is GPU)
    if has_arrays and computes_on == "gpu":
        assert devices.pop("Reinterpret") == "cpu"  # before the copy
    assert set(devices.values()) == {computes_on}
    assert output_devices(pipeline) == ["gpu" if device is GPU else "cpu"]


def test_arguments_of_the_decoder() -> None:
    arguments = decoder_arguments(graph(DataConfig(hw_decoder_load=0.25), GPU))
    assert "hw_decoder_load: 0.25" in arguments
    assert "jpeg_fancy_upsampling: True" in arguments


def test_the_gpus_decoder_needs_a_gpu() -> None:
    check_decoder(DataConfig(decoder="gpu"), GPU)
    check_decoder(DataConfig(decoder="cpu"), CPU)
    with pytest.raises(UserError, match=r"data\.decoder is gpu, .*--data\.decoder auto"):
        check_decoder(DataConfig(decoder="gpu"), CPU)


def batches_of(photos: Index, config: DataConfig, device: torch.device) -> torch.Tensor:
    specs = evaluation_specs(photos, np.arange(len(photos)), config, 16)
    loader = Loader(photos, specs, config, device, 16, threads=2)
    return torch.cat([batch.images.cpu() for batch in loader])


def test_the_cpus_decoder_by_name(photos: Index) -> None:
    named = DataConfig(decoder="cpu", hw_decoder_load=0.0)
    assert torch.equal(batches_of(photos, named, CPU), batches_of(photos, DataConfig(), CPU))


@pytest.mark.gpu
def test_the_cpus_decoder_gives_a_gpu_the_same_pixels(photos: Index) -> None:
    on_gpu = batches_of(photos, DataConfig(decoder="cpu"), GPU)
    assert torch.equal(on_gpu, batches_of(photos, DataConfig(), CPU))
    half = dataclasses.replace(DataConfig(), decoder="cpu", half_input=True)
    assert torch.equal(batches_of(photos, half, GPU), on_gpu.half())
