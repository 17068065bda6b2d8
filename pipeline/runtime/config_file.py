"""The options of a run as a YAML file."""

from pathlib import Path

import yaml

from pipeline.config import RunConfig
from pipeline.config.parse import to_dict
from pipeline.runtime.files import atomic_write


def save(config: RunConfig, path: Path) -> None:
    """Write the merged configuration as YAML that ``--config`` reads back."""
    with atomic_write(path) as partial:
        partial.write_text(yaml.safe_dump(to_dict(config), sort_keys=False))
