"""All options of each entry point."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from .checks import Range, Section, number, require
from .data import DataConfig
from .evaluation import EvaluationConfig
from .model import ModelConfig
from .runtime import RuntimeConfig
from .tracking import TrackingConfig
from .training import (
    CheckpointConfig,
    LogConfig,
    ObjectiveConfig,
    OptimConfig,
    RegularizerConfig,
    ScheduleConfig,
    TrainConfig,
)

RESUME_WORDS = ("auto", "never")  # values of `resume` that are no paths
_LONGEST_NAME = 255  # bytes of a file's or folder's name, on the usual file systems


@dataclass(kw_only=True)
class RunConfig(Section):
    """Options of both entry points."""

    output: str | None = None
    """Folder of the run. Default: runs/NAME (evaluation: runs/NAME-evaluation), where NAME is the
    name of the YAML file."""
    resume: str = "auto"
    """auto: resume the run in OUTPUT, if there is one; never: refuse a folder that contains a run;
    PATH: resume from this checkpoint (fine-tuning) or results folder (evaluation)."""
    dry_run: bool = False
    """Check everything, print what would run, and stop."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def check(self) -> None:
        """Refuse empty paths, names in OUTPUT that are longer than file systems allow, and the
        GPU's decoder on a CPU."""
        for name in ("output", "resume"):
            require(getattr(self, name) != "", name, "a path", "''")
        longest = max((len(os.fsencode(part)) for part in Path(self.output or "").parts), default=0)
        rule = f"a path whose names have at most {_LONGEST_NAME} bytes"
        require(longest <= _LONGEST_NAME, "output", rule, f"one of {longest}")
        needs_gpu = self.data.decoder == "gpu" and self.runtime.device == "cpu"
        require(not needs_gpu, "data.decoder", "auto or cpu with runtime.device cpu", "gpu")

    @property
    def folder(self) -> Path:
        """The output folder.

        Raises:
            ValueError: ``output`` is None; `pipeline.config.parse` fills in the default.
        """
        if self.output is None:
            raise ValueError("output has no value")
        return Path(self.output)


class Shard(NamedTuple):
    """One of several jobs that share the images."""

    number: int  # from 0
    num_shards: int

    def __str__(self) -> str:
        return f"{self.number}/{self.num_shards}"


@dataclass(kw_only=True)
class EvaluateConfig(RunConfig):
    """Options of pipeline/evaluate.py."""

    shard: str = "0/1"
    """i/n, with i from 0 to n - 1: evaluate only the i-th of n parts of the images. The n jobs have
    the same OUTPUT and do not communicate."""
    num_examples: int = number(8, Range(minimum=0, unit="images"))
    """Number of images, evenly spaced in the index, whose perturbations are stored for the contact
    sheet."""
    mix_decoders: bool = False
    """Allow OUTPUT to hold results of images that the CPU decoded, and of others that a GPU decoded
    (data.decoder): resume and merge both. Their pixels differ a little, so false refuses this."""

    def check(self) -> None:
        """Check the form and the range of the shard."""
        super().check()
        number, _, num_shards = self.shard.partition("/")
        valid = number.isdecimal() and num_shards.isdecimal() and int(number) < int(num_shards)
        require(valid, "shard", "i/n with i from 0 to n - 1", self.shard)

    @property
    def part(self) -> Shard:
        """The shard, as numbers."""
        number, num_shards = self.shard.split("/")
        return Shard(int(number), int(num_shards))


@dataclass(kw_only=True)
class FinetuneConfig(RunConfig):
    """Options of pipeline/finetune.py."""

    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    regularizer: RegularizerConfig = field(default_factory=RegularizerConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def check(self) -> None:
        """Refuse half-precision input for a net in fp32, and targets by a net without weights."""
        super().check()
        half = self.data.half_input and self.runtime.precision == "fp32"
        require(not half, "data.half_input", "false with runtime.precision fp32", value=True)
        if self.objective.targets == "reference":
            rule = "{} with objective.targets reference"
            has_weights = self.model.weights is not None
            require(has_weights, "model.weights", rule.format("given"), self.model.weights)
            keeps_head = not self.model.new_head
            require(keeps_head, "model.new_head", rule.format("false"), self.model.new_head)
            is_trained = self.train.pretrain_epochs == 0
            required = rule.format("0")
            require(is_trained, "train.pretrain_epochs", required, self.train.pretrain_epochs)
