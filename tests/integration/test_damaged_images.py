"""Images that do not decode, read again and again in one process."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.runs import environment


@pytest.mark.slow
@pytest.mark.parametrize("keep", [0, 300])
def test_breaking_again_and_again_does_not_crash(tmp_path: Path, keep: int) -> None:
    """DALI's decoder alone would take the process down now and then: see `Loader._next_inputs`."""
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "import numpy as np, torch\n"
        "from pipeline.config import DataConfig\n"
        "from pipeline.data.batches import evaluation_specs\n"
        "from pipeline.data.loader import Loader\n"
        "from tests.helpers.images import broken_archive\n"
        "CPU = torch.device('cpu')\n"
        "photos = broken_archive(Path(sys.argv[1]), int(sys.argv[2]))\n"
        "config = DataConfig(on_error='skip')\n"
        "for _ in range(5):\n"
        "    specs = evaluation_specs(photos, np.arange(30), config, 30)\n"
        "    assert len(list(Loader(photos, specs, config, CPU, 30, threads=2))) == 1\n"
        "specs = evaluation_specs(photos, np.arange(10), config, 2)\n"
        "next(iter(Loader(photos, specs, config, CPU, 2, threads=2)))  # left in mid-prefetch\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), str(keep)],
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
