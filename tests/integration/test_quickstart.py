"""docs/quickstart.md: its commands, run as they are on the miniature ILSVRC, for each layout.

Only paths and sizes are replaced (`REPLACED`), and options appended that keep the runs small
(`appended_options`). bash parses the commands, so their quotes and variables are the page's.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

import pytest

from pipeline.data import index
from tests.helpers.in_process import call
from tests.helpers.layouts import (
    Miniature,
    encoded_images,
    labels_of,
    write_class_folders,
    write_files,
    write_kaggle,
    write_shard,
    write_synsets,
)
from tests.helpers.parquet import UNCOMPRESSED, write_parquet
from tests.helpers.runs import ROOT, environment

PAGE = (ROOT / "docs" / "quickstart.md").read_text()
# The page's text -> the test's: paths and numbers of ranks and shards.
REPLACED = {
    "/data/imagenet": "data",
    "--nproc_per_node=8": "--nproc_per_node=2",
    "{0000..1023}": "{0000..0002}",
    "{00..63}": "{00..01}",
}
STEPS = ("2. Look", "3. Evaluate a pretrained net", "4. Fine-tune")
STEPS += ("5. Evaluate again, and compare", "6. TensorBoard")
_PRINT_WORDS = r"""{ printf '%s\0' "$FUNCNAME" "$@"; printf '\n\0'; }"""

Layout = Callable[[Path, Miniature], None]


def tars(folder: Path, miniature: Miniature) -> None:
    for path in miniature.train.root.glob("ILSVRC2012*"):
        (folder / path.name).symlink_to(path)


def kaggle(folder: Path, miniature: Miniature) -> None:
    write_kaggle(folder, miniature)
    write_synsets(folder, miniature.kit)


def webdataset(folder: Path, miniature: Miniature) -> None:
    write_synsets(folder, miniature.kit)
    shards = (
        ("imagenet1k-train-%04d", miniature.train, 3),
        ("imagenet1k-validation-%02d", miniature.val, 2),
    )
    for name, photos, num_shards in shards:
        contents, labels = list(encoded_images(photos).items()), labels_of(photos)
        for shard in range(num_shards):
            write_shard(folder / f"{name % shard}.tar", dict(contents[shard::num_shards]), labels)


def class_folders(folder: Path, miniature: Miniature) -> None:
    write_class_folders(folder / "train", miniature.train, miniature.kit)
    write_class_folders(folder / "val", miniature.val, miniature.kit)


def flat_validation(folder: Path, miniature: Miniature) -> None:
    write_class_folders(folder / "train", miniature.train, miniature.kit)
    write_files(folder / "val", encoded_images(miniature.val))
    wnids = miniature.kit.wnids
    lines = [f"{name} {wnids[label]}\n" for name, label in labels_of(miniature.val).items()]
    (folder / "val_labels.txt").write_text("".join(lines))


def parquet_files(folder: Path, miniature: Miniature) -> None:
    """Compressed training files, and an uncompressed validation file."""
    write_synsets(folder, miniature.kit)
    for name, photos, num_files in (
        ("train", miniature.train, 2),
        ("validation", miniature.val, 1),
    ):
        labels = labels_of(photos)
        images = [(data, PurePosixPath(i).name) for i, data in encoded_images(photos).items()]
        for number in range(num_files):
            write_parquet(
                folder / f"{name}-{number:05d}-of-{num_files:05d}.parquet",
                images[number::num_files],
                list(labels.values())[number::num_files],
                miniature.kit.names,
                **(UNCOMPRESSED if name == "validation" else {}),
            )


LAYOUTS: dict[str, Layout] = {
    "The tars of ILSVRC-2012": tars,
    "Kaggle's tree": kaggle,
    "WebDataset shards": webdataset,
    "A folder for each class": class_folders,
    "A flat validation folder": flat_validation,
    "Parquet files": parquet_files,
}


def block_of(heading: str, page: str = PAGE) -> str:
    """The indented commands below a heading."""
    section = re.search(rf"^##+ {re.escape(heading)}\n(.*?)(?=^##|\Z)", page, re.M | re.S)
    assert section is not None, heading
    return "".join(line[4:] + "\n" for line in section[1].splitlines() if line.startswith("    "))


def commands_of(blocks: Iterable[str]) -> list[list[str]]:
    """The words of each command, as bash reads them."""
    text = "".join(blocks)
    for old, new in REPLACED.items():
        text = text.replace(old, new)
    programs = ("python", "torchrun", "tensorboard")
    functions = "\n".join(f"{name}() {_PRINT_WORDS}" for name in programs)
    script = f"set -eu\nPATH=\n{functions}\n{text}"
    done = subprocess.run(
        [shutil.which("bash") or "bash", "-c", script], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    return [command.split("\0")[:-1] for command in done.stdout.split("\n\0")[:-1]]


def appended_options(command: list[str], weights: Path) -> list[str]:
    """Options that make a command's work small, or accept that the data are."""
    program = next((word for word in command if word.endswith(".py")), "")
    if program == "tools/index.py":
        return ["--partial"] if command[2] in ("ilsvrc", "kaggle") else []
    if not program.startswith("pipeline/"):
        return []
    options = "--evaluation.num_images 12 --evaluation.attack.num_candidates 3 "
    if "configs/imagenet_resnet18.yaml" in command:  # its own options are for a GPU
        options += "--data.crop_size 64 --data.resize_size 64 --data.half_input false "
        options += f"--runtime.precision fp32 --model.name squeezenet1_1 --model.weights {weights} "
    if program == "pipeline/finetune.py":
        options += "--regularizer.attack.num_candidates 3 --regularizer.attack.max_iterations 1 "
        options += "--regularizer.precision fp32 --train.batch_size 50 --log.panel_images 1"
    return options.split()


class Shell:
    """Runs the page's commands, in this process or in processes of their own."""

    def __init__(self, folder: Path, weights: Path, in_processes: bool = False) -> None:
        self.folder, self.weights, self.in_processes = folder, weights, in_processes
        self.programs: list[str] = []
        for name in ("configs", "pipeline", "tools"):
            (folder / name).symlink_to(ROOT / name)
        (folder / "data").mkdir()

    def run(self, blocks: Iterable[str]) -> None:
        for command in commands_of(blocks):
            if command[0] == "tensorboard":  # it runs until Ctrl-C: what it would show
                assert command[1] == "--logdir"
                assert list((self.folder / command[2]).rglob("events.out.tfevents*"))
                continue
            self._run([*command, *appended_options(command, self.weights)])

    def _run(self, command: list[str]) -> None:
        script = next((n for n, word in enumerate(command) if word.endswith(".py")), None)
        if script is None or self.in_processes:
            done = subprocess.run(
                command, capture_output=True, text=True, cwd=self.folder, env=environment()
            )
            code, text = done.returncode, done.stdout + done.stderr
        else:
            ended = call(*command[script:])
            code, text = ended.code, ended.stdout + ended.stderr
        assert code == 0, f"{' '.join(command)}\n{text}"


@pytest.fixture
def make_shell(
    tmp_path: Path, squeezenet_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Shell]:
    monkeypatch.chdir(tmp_path)
    return lambda **options: Shell(tmp_path, squeezenet_weights, **options)


def assert_indexed(folder: Path, miniature: Miniature) -> None:
    """The indices have the miniature's images, with their labels of 1,000 classes."""
    for name, expected in (("train", miniature.train), ("val", miniature.val)):
        photos = index.read(str(folder / "data" / f"{name}.parquet"))
        assert photos.num_classes == 1000

        def by_stem(labels: dict[str, int]) -> dict[str, int]:
            return {PurePosixPath(i).name.partition(".")[0]: k for i, k in labels.items()}

        assert by_stem(labels_of(photos)) == by_stem(labels_of(expected))


def assert_finished(folder: Path) -> None:
    """All steps have written what the page says."""
    for name in ("reference", "deep_defense-evaluation"):
        summary = json.loads((folder / "runs" / name / "summary.json").read_text())
        assert summary["num_samples"] == 12
    assert (folder / "runs" / "deep_defense" / "weights.pth").exists()
    assert (folder / "runs" / "sheet.png").exists()


def test_every_layout_of_the_page_is_tested() -> None:
    headings = re.findall(r"^### (.*)$", PAGE, re.M)
    assert headings == list(LAYOUTS)
    for heading in (*headings, *STEPS):
        assert commands_of([f"D=x\n{block_of(heading)}"]), heading
    tested = {line for h in (*headings, *STEPS) for line in block_of(h).splitlines()}
    assert {line[4:] for line in PAGE.splitlines() if line.startswith("    ")} == tested


def test_index_and_look(make_shell: Callable[..., Shell], miniature: Miniature) -> None:
    shell = make_shell()
    tars(shell.folder / "data", miniature)
    shell.run([block_of("The tars of ILSVRC-2012"), block_of("2. Look")])
    assert_indexed(shell.folder, miniature)
    assert not (shell.folder / "runs").exists()


@pytest.mark.parametrize(
    ("old", "new"), [("--devkit", "--devkt"), ("imagenet_resnet18.yaml", "imagenet_resnet.yaml")]
)
def test_a_wrong_command_is_noticed(
    make_shell: Callable[..., Shell], miniature: Miniature, old: str, new: str
) -> None:
    shell = make_shell()
    tars(shell.folder / "data", miniature)
    page = PAGE.replace(old, new)
    with pytest.raises(AssertionError, match=f"error: .*{new}; did you mean .*{old}"):
        shell.run([block_of("The tars of ILSVRC-2012", page), block_of("2. Look", page)])


@pytest.mark.slow
@pytest.mark.parametrize("heading", LAYOUTS)
def test_all_steps(make_shell: Callable[..., Shell], miniature: Miniature, heading: str) -> None:
    shell = make_shell()
    LAYOUTS[heading](shell.folder / "data", miniature)
    shell.run(map(block_of, (heading, *STEPS)))
    assert_indexed(shell.folder, miniature)
    assert_finished(shell.folder)


@pytest.mark.slow
def test_all_steps_in_processes(make_shell: Callable[..., Shell], miniature: Miniature) -> None:
    shell = make_shell(in_processes=True)
    tars(shell.folder / "data", miniature)
    shell.run(map(block_of, ("The tars of ILSVRC-2012", *STEPS)))
    assert_finished(shell.folder)
