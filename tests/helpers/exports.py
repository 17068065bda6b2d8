"""What tests of exports share: the export of a folder, and the code of its card."""

import os
import re
import runpy
from pathlib import Path
from typing import Any

from torch import nn

from tests.helpers.in_process import succeed

EXPORT = "tools/export.py"


def export(run: Path, out: Path, *options: object) -> Path:
    """Export a run; the folder of the export."""
    succeed(EXPORT, run, "--out", out, *options)
    return out


def run_card(folder: Path, number: int) -> dict[str, Any]:
    """Run a code block of a card in its folder, as a user would; the names that it defines."""
    blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    script, before = folder / "block.py", Path.cwd()
    script.write_text(blocks[number])
    os.chdir(folder)
    try:
        return runpy.run_path(str(script))
    finally:
        os.chdir(before)
        script.unlink()


def loaded_net(folder: Path) -> nn.Module:
    """The net as the card loads it."""
    return run_card(folder, 0)["net"]
