"""README.md and docs/: the paths, modules, options and links that they name exist.

Docstrings too: the modules and functions that they name exist. And docs/architecture.md lists
every module.
"""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from pipeline.config import EvaluateConfig, FinetuneConfig
from pipeline.config.checks import all_options

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OPTIONS = {*all_options(FinetuneConfig), *all_options(EvaluateConfig)}
FOLDERS = "pipeline|tools|launchers|configs|slurm|tests"
SECTIONS = {name.rpartition(".")[0] for name in OPTIONS} - {""}
# Of jsonargparse, and of torchrun, srun and sbatch, pip, uv, docker, apptainer.
COMMON = {"help", "help-all", "config", "print_config"}
RESAMPLING = ROOT / "pipeline" / "reports" / "resampling_options.py"
FILE_ENDINGS = (".py", ".safetensors", ".onnx")
FOREIGN = {
    *("standalone", "nproc_per_node", "max-restarts", "array", "kill-on-bad-exit"),
    *("shutdown-timeout", "gpus-per-task"),
    *("kill-on-invalid-dep", "logdir", "pid", "no-build-isolation"),
    *("ntasks-per-node", "gpus-per-node", "frozen", "torch-backend", "index-url"),
    *("file", "tag", "rm", "gpus", "ipc", "volume", "nv", "bind"),
}


@pytest.fixture(params=PAGES, ids=lambda page: page.name)
def page(request: pytest.FixtureRequest) -> str:
    return request.param.read_text()


def code_of(text: str) -> list[str]:
    """Every piece of code: inline code, and the lines of blocks (joined at a final backslash)."""
    blocks = re.findall(r"^```.*?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    blocks += re.findall(r"(?:^ {4,}.*\n)+", prose, re.MULTILINE)
    lines = [line for block in blocks for line in re.sub(r"\\\n", " ", block).splitlines()]
    prose = re.sub(r"^ {4}.*\n", "", prose, flags=re.MULTILINE)
    return [*lines, *(re.sub(r"\s+", " ", piece) for piece in re.findall(r"`([^`]+)`", prose))]


def test_paths_exist(page: str) -> None:
    paths = {
        path.rstrip(".")
        for piece in code_of(page)
        for path in re.findall(rf"(?<![\w./])(?:{FOLDERS})/[\w./]*", piece)
    }
    assert sorted(path for path in paths if not (ROOT / path).exists()) == []


def test_modules_exist(page: str) -> None:
    names = {
        name
        for piece in code_of(page)
        for name in re.findall(r"(?<![\w./-])(?:pipeline|launchers)(?:\.[A-Za-z_]\w*)+", piece)
    }
    assert sorted(name for name in names if not is_defined(name)) == []


SOURCES = [
    file for folder in ("pipeline", "launchers", "tools") for file in ROOT.glob(f"{folder}/**/*.py")
]


def test_modules_named_in_the_code_exist() -> None:
    named = {
        (str(file.relative_to(ROOT)), name)
        for file in SOURCES
        for name in re.findall(r"`((?:pipeline|launchers)(?:\.\w+)+)`", file.read_text())
    }
    assert sorted(pair for pair in named if not is_defined(pair[1])) == []


def test_architecture_lists_every_module() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    modules = [
        str(file.relative_to(ROOT))
        for file in SOURCES
        if file.name != "__init__.py" and file.relative_to(ROOT).parts[0] != "tools"
    ]
    assert sorted(name for name in modules if name not in text) == []


def test_options_exist(page: str) -> None:
    unknown = [(name, piece) for piece in code_of(page) for name in unknown_options(piece)]
    assert unknown == []


def test_links_lead_somewhere(page: str, request: pytest.FixtureRequest) -> None:
    folder = request.node.callspec.params["page"].parent
    broken = []
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", page):
        path, _, anchor = link.partition("#")
        target = folder / path if path else request.node.callspec.params["page"]
        if not target.exists() or (anchor and anchor not in anchors_of(target)):
            broken.append(link)
    assert broken == []


def test_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 100
    assert [line for line in lines if len(line) > 120] == []


def test_mistakes_are_found() -> None:
    assert not is_defined("pipeline.config.NoSuchOption")
    assert unknown_options("--optim.rate 1") == ["optim.rate"]
    assert unknown_options("regularizer.lam_bda") == ["regularizer.lam_bda"]
    assert unknown_options("launchers/jobs.py --wach") == ["wach"]
    assert unknown_options("launchers/chain.py --nodes 4 -- --nodes 4") == ["nodes"]
    assert unknown_options("tools/chaos.py -- launchers/jobs.py --wach") == ["wach"]
    assert code_of("Text `a\nb`.\n\n    c \\\n      d\n") == ["    c        d", "a b"]


def is_defined(name: str) -> bool:
    """Whether ``name`` is a module of the repository, a name at the top level of one, or a member
    of a class (the class is looked up)."""
    owner = name.rpartition(".")[0]
    if owner.rpartition(".")[2][:1].isupper():
        return is_defined(owner)
    path = ROOT.joinpath(*name.split("."))
    if path.is_dir() or path.with_suffix(".py").exists():
        return True
    files = (path.parent.with_suffix(".py"), path.parent / "__init__.py")
    trees = [ast.parse(file.read_text()) for file in files if file.exists()]
    return any(path.name in top_level(tree) for tree in trees)


def top_level(tree: ast.Module) -> set[str]:
    """Names that a module defines or imports."""
    names = set()
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            names |= {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}
    return names


def unknown_options(piece: str) -> list[str]:
    """Options in a piece of code that no program has.

    ``--section.option`` and a bare ``section.option`` must be options of the entry points. A
    ``--word`` after a program's name must be in its source; after ``--``, an option of the entry
    points; after that of tools/chaos.py comes a whole command.
    """
    own, dashes, command = piece.partition(" -- ")
    if "tools/chaos.py" in own and dashes:
        return unknown_options(own) + unknown_options(command)
    bare = re.fullmatch(r"(\w+(?:\.\w+)+)(?:: .*)?", piece)
    is_option = bare and bare[1].split(".")[0] in SECTIONS and not bare[1].endswith(FILE_ENDINGS)
    names = [bare[1]] if is_option else []
    unknown = [name for name in names if name not in OPTIONS | SECTIONS]
    words = known_words(piece)
    for word in re.sub(r"(?<= )#.*", "", piece).split():
        if word == "--":
            words = OPTIONS
        if not (match := re.match(r"""['"(]*--(\w[\w.-]*)""", word)):
            continue
        name = match[1].rstrip(".")
        known = OPTIONS | SECTIONS if "." in name else words | COMMON | FOREIGN
        if name not in known:
            unknown.append(name)
    return unknown


def known_words(piece: str) -> set[str]:
    """Options without a section, of the program named in a piece of code, or of all programs."""
    program = re.search(r"\b(pipeline|tools|launchers|slurm)/\w+\.(?:py|sbatch)", piece)
    if program is None:
        return OPTIONS.union(
            *map(words_in, [*ROOT.glob("tools/*.py"), *ROOT.glob("launchers/*.py")])
        )
    if program[1] in ("pipeline", "slurm"):
        return OPTIONS
    shared = (ROOT / "launchers" / name for name in ("options.py", "command_lines.py"))
    return words_in(ROOT / program[0]).union(*map(words_in, shared))


@cache
def words_in(file: Path) -> set[str]:
    """Options as the source of a program writes them, and those that it adds from
    `pipeline.reports.resampling_options`; a missing file has none."""
    if not file.exists():
        return set()
    text = file.read_text()
    if "add_resampling(" in text:
        text += RESAMPLING.read_text()
    return set(re.findall(r'"--([\w-]+)"', text))


@cache
def anchors_of(file: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
