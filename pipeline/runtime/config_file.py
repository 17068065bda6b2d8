"""The options of a run as a YAML file."""

from pathlib import Path
from typing import Any

import yaml

from pipeline.config import RunConfig
from pipeline.config.parse import to_dict
from pipeline.config.text import parse_yaml
from pipeline.runtime.files import atomic_write


def save(config: RunConfig, path: Path) -> None:
    """Write the merged configuration as YAML that ``--config`` reads back."""
    with atomic_write(path) as partial:
        partial.write_text(yaml.safe_dump(to_dict(config), sort_keys=False))


def read(path: Path) -> dict[str, Any]:
    """The values that `save` wrote, as nested dictionaries; none without the file."""
    return parse_yaml(path.read_text()) if path.exists() else {}
