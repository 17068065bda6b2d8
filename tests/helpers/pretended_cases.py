"""What is rehearsed on the pretended CUDA device, by name: options of steps, evaluations and runs.

The names are the parameters of tests/integration/test_pretended_cuda.py, in whose process there is
no pretended device; `pretended_runs` runs the cases in another one.
"""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import torchvision
from torch import nn

from pipeline.config import (
    AttackConfig,
    DataConfig,
    EvaluationConfig,
    FinetuneConfig,
    RegularizerConfig,
)
from tests.helpers.nets import smooth

Options = Mapping[str, Any]  # values by the names of options, such as optim.lr
Config = TypeVar("Config")

GRADIENTS: dict[str, Options] = {
    "unrolled": {"regularizer.gradient": "unrolled"},
    "boundary": {"regularizer.gradient": "boundary"},
    "one_step": {"regularizer.gradient": "one_step"},
    "true distance": {
        "regularizer.gradient": "boundary",
        "regularizer.attack.method": "superdeepfool",
    },
}
PRECISIONS = ("fp32", "bf16", "fp16")
LAYOUTS = {"NCHW": False, "channels_last": True}


class StepCase(NamedTuple):
    """Optimiser steps of one net."""

    options: Options
    net: str = "small"
    typical_ratio: float | None = None  # with a ratio, misclassified images are sampled


class EvaluationCase(NamedTuple):
    """An evaluation of one net."""

    options: Options  # of the section evaluation
    net: str = "small"


def small_net() -> nn.Module:
    """Layers of the kinds that ResNets have, for images of 3 x 16 x 16."""
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)),
        *(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(128, 10)),
    )


def dropout_net() -> nn.Module:
    """A piecewise linear net that drops channels and features, for images of 3 x 16 x 16."""
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Dropout2d(0.2), nn.Flatten()),
        *(nn.Dropout(0.3), nn.Linear(392, 10)),
    )


def attention_net() -> nn.Module:
    """A vision transformer of two layers, for images of 3 x 16 x 16."""
    net = torchvision.models.VisionTransformer(
        image_size=16,
        patch_size=8,
        num_layers=2,
        num_heads=2,
        hidden_dim=16,
        mlp_dim=32,
        num_classes=10,
    )
    # torchvision's last layer has zero weights, with which no image has a gradient.
    net.heads = nn.Sequential(nn.Linear(16, 10))
    return net


NETS: dict[str, Callable[[], nn.Module]] = {
    "small": small_net,
    "dropout": dropout_net,
    "smooth": smooth,
    "attention": attention_net,
    "resnet18": torchvision.models.resnet18,
}

# Each gradient in each precision and layout.
STEPS: dict[str, StepCase] = {
    f"{gradient} {precision} {layout}": StepCase(
        {
            **GRADIENTS[gradient],
            "runtime.precision": precision,
            "runtime.channels_last": LAYOUTS[layout],
        }
    )
    for gradient, precision, layout in itertools.product(GRADIENTS, PRECISIONS, LAYOUTS)
}
QUICK_STEPS = [f"{name} fp32 NCHW" for name in GRADIENTS] + [
    f"{name} bf16 channels_last" for name in GRADIENTS
]

_BF16 = {"runtime.precision": "bf16"}
for _name, _options in GRADIENTS.items():
    STEPS |= {
        f"{_name} in parts": StepCase({**_options, **_BF16, "regularizer.max_images": 3}),
        f"{_name} sampled": StepCase(_options, typical_ratio=0.001),
        f"{_name} with dropout": StepCase(_options, "dropout"),
        f"{_name} with fixed dropout": StepCase(
            {**_options, "model.attack_dropout": True, "regularizer.max_images": 3}, "dropout"
        ),
        f"{_name} of a smooth net": StepCase(_options, "smooth"),
        f"{_name} of attention": StepCase({**_options, **_BF16}, "attention"),
    }
_ADVERSARIAL = {"objective.adversarial.eps": 0.1}
STEPS |= {
    "clean": StepCase({"objective.method": "clean"}),
    "adversarial_2": StepCase({**_ADVERSARIAL, "objective.method": "adversarial_2"}),
    "parseval": StepCase({"objective.method": "parseval"}),
    "three methods": StepCase(
        {**_ADVERSARIAL, **_BF16, "objective.method": "deep_defense+adversarial_2+parseval"}
    ),
    "trained batch norm": StepCase({"model.freeze_batch_norm": False}),
    "accumulated": StepCase({"train.gradient_accumulation_steps": 2}),
    "clipped gradients": StepCase({"runtime.precision": "fp16", "optim.max_grad_norm": 0.1}),
    "some layers": StepCase({"regularizer.layers": ["0.*"]}),
    "norm inf": StepCase({"regularizer.attack.norm": "inf"}),
    "loss_gradient": StepCase({"regularizer.attack.step_direction": "loss_gradient"}),
    "smallest share": StepCase({"regularizer.smallest_share": 0.5}),
    "fp16 beside bf16": StepCase({**_BF16, "regularizer.precision": "fp16"}),
}

EVALUATIONS: dict[str, EvaluationCase] = {
    "exhaustive": EvaluationCase({}),
    "pruned": EvaluationCase({"attack.candidate_search": "pruned", "attack.target_class": "fixed"}),
    "fgs": EvaluationCase({"fgs.eps": [0.01, 0.1], "fgs.search": True}),
    "superdeepfool": EvaluationCase({"attack.method": "superdeepfool", "attack.restarts": 1}),
    "ddn": EvaluationCase({"attack.method": "ddn", "attack.descent_steps": 5}),
    "best": EvaluationCase({"attack.method": "best", "attack.descent_steps": 5}),
    "clipped pixels": EvaluationCase({"space": "pixels", "clip": True}),
    "norm inf": EvaluationCase({"attack.norm": "inf"}),
    "lower bound": EvaluationCase({"lower_bound": True}),
    "no diagnostics": EvaluationCase({"diagnostics": False}),
    "attention": EvaluationCase({}, "attention"),
}
QUICK_EVALUATIONS = ["exhaustive"]

# Runs of pipeline/finetune.py: the options that differ from `RUN`.
TRAININGS: dict[str, Options] = {
    "lenet fp16": {"model.name": "lenet", "runtime.precision": "fp16"},
    "mlp fp32": {"model.name": "mlp", "regularizer.gradient": "boundary"},
}

# ResNet-18 with random weights: what is counted, by precision and gradient.
_COUNTED_GRADIENTS: dict[str, Options] = {
    **{name: options for name, options in GRADIENTS.items() if name != "true distance"},
    # All iterations of 32 images.
    "unrolled, max_images 96": {**GRADIENTS["unrolled"], "regularizer.max_images": 96},
}
# About what photos need, by SqueezeNet 1.1: 2.07 iterations (standard deviation 0.59), and in the
# first one gradients of 1.95 candidates. Random weights would need more of both.
# With 16 pixels the last stage has inputs of one pixel: torch's bf16 gradient by the weights of a
# convolution with stride 2 is then partly uninitialised on CPUs with AVX-512 (torch 2.15).
_COUNTED_SETTING: Options = {
    "data.crop_size": 24,
    "data.resize_size": 24,
    "regularizer.attack.max_iterations": 3,
    "regularizer.attack.num_candidates": 3,
}
COUNTED_STEPS: dict[str, StepCase] = {
    f"{precision} {name}": StepCase(
        {**options, **_COUNTED_SETTING, "runtime.precision": precision}, "resnet18"
    )
    for precision in ("fp32", "bf16")
    for name, options in {"plain": {"objective.method": "clean"}, **_COUNTED_GRADIENTS}.items()
}
QUICK_COUNTED_STEPS = ["bf16 plain", "bf16 boundary"]
COUNTED_EVALUATIONS: dict[str, EvaluationCase] = {
    name: EVALUATIONS[name]._replace(net="resnet18") for name in ("exhaustive", "pruned", "fgs")
}


def changed(config: Config, options: Options) -> Config:
    """The dataclass with some options, of sections at any depth, changed."""
    for name, value in options.items():
        section, _, rest = name.partition(".")
        value = changed(getattr(config, section), {rest: value}) if rest else value
        config = replace(config, **{section: value})  # pyright: ignore[reportArgumentType]
    return config


def step_config(case: StepCase) -> FinetuneConfig:
    """The options of a step."""
    size, images = (32, 32) if case.net == "resnet18" else (16, 8)
    data = DataConfig(crop_size=size, resize_size=size)
    config = changed(FinetuneConfig(data=data), {"train.batch_size": images})
    config = changed(config, {"regularizer": RegularizerConfig(c=50.0, d=1.0)})
    return changed(config, case.options)


def evaluation_config(options: Options) -> EvaluationConfig:
    """The options of an evaluation."""
    attack = AttackConfig(max_iterations=5, num_candidates=5)
    return changed(EvaluationConfig(attack=attack, batch_size=16), options)


def training_config(options: Options, data: str, output: str, resume: str) -> FinetuneConfig:
    """The options of a run of eight steps, with evaluations, panels and checkpoints."""
    images = DataConfig(
        train=data, val=data, crop_size=28, resize_size=28, channels=1, mean=[0.5], std=[0.5]
    )
    run = {
        "train.batch_size": 12,
        "train.pretrain_epochs": 1,
        "checkpoint.every_steps": 3,
        "checkpoint.keep_last": 9,
        "log.every_steps": 2,
        "log.panel_images": 2,
        "evaluation.num_images": 16,
        "evaluation.batch_size": 8,
    }
    config = FinetuneConfig(data=images, output=output, resume=resume)
    return changed(config, {**run, **options})
