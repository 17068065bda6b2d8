"""Options of both entry points: typed dataclasses, a YAML file, then command-line overrides.

Each section belongs to the room that reads it. What both entry points read is in `RunConfig`, so
the YAML of an experiment serves both: each passes over the sections that only the other has.
"""

from pathlib import Path

from .data import DataConfig
from .evaluation import EPS_REF_FRACTIONS, AttackConfig, EvaluationConfig, FgsConfig
from .ignored import warn_ignored
from .model import ModelConfig
from .runs import EvaluateConfig, FinetuneConfig, RunConfig, Shard
from .runtime import RuntimeConfig
from .training import (
    AdversarialConfig,
    CheckpointConfig,
    LogConfig,
    ObjectiveConfig,
    OptimConfig,
    ParsevalConfig,
    RegularizerConfig,
    ScheduleConfig,
    TrainConfig,
)

_ROOT = Path(__file__).resolve().parents[2]
_INSTALLED = _ROOT / "pipeline" / "configs"  # exists in an installed wheel, not in a checkout
CONFIGS = _INSTALLED if _INSTALLED.is_dir() else _ROOT / "configs"
DEFAULT_CONFIG = CONFIGS / "demo.yaml"

__all__ = [
    "CONFIGS",
    "DEFAULT_CONFIG",
    "EPS_REF_FRACTIONS",
    "AdversarialConfig",
    "AttackConfig",
    "CheckpointConfig",
    "DataConfig",
    "EvaluateConfig",
    "EvaluationConfig",
    "FgsConfig",
    "FinetuneConfig",
    "LogConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimConfig",
    "ParsevalConfig",
    "RegularizerConfig",
    "RunConfig",
    "RuntimeConfig",
    "ScheduleConfig",
    "Shard",
    "TrainConfig",
    "warn_ignored",
]
