"""Fixtures: where the real data is, a cache for generated data, and entry points as processes."""

import gc
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.data import ilsvrc, index
from pipeline.data.index import Index
from pipeline.runtime.reproducibility import use_reproducible_kernels
from pipeline.training.memory_budget import free_bytes
from tests.helpers import images
from tests.helpers.runs import SCRIPT, SMALL, Run, command, environment
from tests.helpers.slurm import NEEDED, processes

use_reproducible_kernels()  # before the first matrix product
torch.set_num_threads(1)

TESTS = Path(__file__).parent
ON_SLURM = ("tests/integration/test_reproduce.py",)  # besides those of tests/slurm


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="run the tests marked slow too")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int | None:
    """Workers of -n auto: one a core and 4 GiB, at most eight, unless the variable says more."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None  # pytest-xdist reads it
    memory = free_bytes(torch.device("cpu")) // 2**30
    return max(1, min(len(os.sched_getaffinity(0)), memory // 4, 8))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With -n: a worker runs all tests of a file, which share fixtures, and one all on SLURM."""
    from xdist.scheduler import LoadFileScheduling  # pytest-xdist may be missing

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "SLURM" if file.startswith("tests/slurm/") or file in ON_SLURM else file

    return Scheduling(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark tests by folder, and leave out the slow ones unless asked for."""
    for item in items:
        tier = item.path.relative_to(TESTS).parts[0]
        slow = item.get_closest_marker("slow")
        if tier == "unit" and not slow:
            item.add_marker(pytest.mark.unit)
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device; torch sees none"))
    by_name = any("::" in argument for argument in config.args)
    if not (config.getoption("--all") or by_name or config.getoption("-m")):
        slow_items = [item for item in items if item.get_closest_marker("slow")]
        items[:] = [item for item in items if not item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow_items)


def pytest_collection_finish() -> None:
    """Leave the objects of torch and DALI, about a million, out of garbage collections."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data, named by the environment variable DEEPDEFENSE_DATA."""
    folder = os.environ.get("DEEPDEFENSE_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("needs real data: DEEPDEFENSE_DATA names no folder")
    return Path(folder)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of this session's own, so that the embedded digits are made anew."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["DEEPDEFENSE_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def no_service_left() -> Iterator[None]:
    """End W&B's process, which the first run that uses it in this process has started."""
    yield
    wandb = sys.modules.get("wandb")
    if wandb is not None:
        wandb.teardown()


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """An index of 40 generated pictures of many sizes in a tar, of two classes."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    members = {}
    for number in range(40):
        width, height = rng.integers(40, 400, 2).tolist()
        encoded = images.encode(images.picture(width, height, number), "JPEG", quality=95)
        members[f"{'ab'[number % 2]}/{number:03d}.jpg"] = encoded
    return images.index_tar(folder / "photos.tar", members)


@pytest.fixture(scope="session")
def squeezenet_weights(real_data: Path) -> Path:
    """torchvision's SqueezeNet 1.1, trained on ImageNet."""
    return real_data / "weights" / "squeezenet1_1-imagenet.pth"


@pytest.fixture(scope="session")
def ilsvrc_val(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of the miniature ILSVRC's 150 validation photos."""
    folder = real_data / "ilsvrc-mini"
    kit = ilsvrc.read_development_kit(folder / "ILSVRC2012_devkit_t12.tar.gz")
    archive = folder / "ILSVRC2012_img_val.tar"
    rows = ilsvrc.scan_ilsvrc_val(archive, kit.validation_labels)
    path = tmp_path_factory.mktemp("ilsvrc") / "val.parquet"
    index.write(path, rows.table(), folder, kit.names, {archive.name: archive})
    return path


@pytest.fixture(scope="session")
def run() -> Run:
    """Run an entry point as a user would, in a process of its own; its output as text."""

    def call(script: str, *options: object, ranks: int = 0) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(script, *options, ranks=ranks),
            capture_output=True,
            text=True,
            timeout=300,
            env=environment(),
        )

    return call


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run that nothing cut."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    done = subprocess.run(
        command(SCRIPT, *SMALL, "--output", folder),
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    assert "before" in done.stdout
    assert "Traceback" not in done.stderr
    return folder


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """A SLURM of two nodes, which leaves nothing behind."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"needs root and SLURM; not found: {', '.join(missing) or 'root'}")
    script = TESTS / "slurm" / "cluster.sh"
    # pytest's own folders are closed to others, which munged does not accept.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        subprocess.run([script, "up", f"{folder}/c"], check=True, stdout=subprocess.DEVNULL)
        os.environ["SLURM_CONF"] = f"{folder}/c/slurm.conf"
        yield
        subprocess.run([script, "down", f"{folder}/c"], check=True)
        del os.environ["SLURM_CONF"]
        commands = [
            command_line for _, command_line in processes(SLURM_CONF=f"{folder}/c/slurm.conf")
        ]
        # Python's own helpers of these tests may have been started meanwhile.
        helpers = re.compile(r"from multiprocessing\.(resource_tracker|forkserver) import")
        left = [
            command_line for command_line in commands if not helpers.search(" ".join(command_line))
        ]
        assert not left, "processes are left behind"
        listening = "".join(Path("/proc/net", name).read_text() for name in ("tcp", "tcp6"))
        base = int(os.environ.get("SLURM_BASE_PORT", "16900"))
        ports = [base + number for number in (0, 2, 11, 12)]
        assert not [port for port in ports if f":{port:04X} 00000000:0000 0A" in listening]
