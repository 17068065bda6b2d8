"""Options of both entry points: typed dataclasses, a YAML file, then command-line overrides.

`RunConfig` contains the options of both entry points. Both can read the same YAML file: each one
ignores the sections that only the other one has.
"""

from pathlib import Path

from .data import DataConfig
from .evaluation import (
    BEST,
    EPS_REF_FRACTIONS,
    LOW_COSINE,
    AttackConfig,
    EvaluationConfig,
    FgsConfig,
    FgsDirectionKind,
)
from .ignored import ignored_option_messages
from .model import ModelConfig
from .runs import RESUME_WORDS, EvaluateConfig, FinetuneConfig, RunConfig, Shard
from .runtime import RuntimeConfig
from .tracking import TrackingConfig
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
    "BEST",
    "CONFIGS",
    "DEFAULT_CONFIG",
    "EPS_REF_FRACTIONS",
    "LOW_COSINE",
    "RESUME_WORDS",
    "AdversarialConfig",
    "AttackConfig",
    "CheckpointConfig",
    "DataConfig",
    "EvaluateConfig",
    "EvaluationConfig",
    "FgsConfig",
    "FgsDirectionKind",
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
    "TrackingConfig",
    "TrainConfig",
    "ignored_option_messages",
]
