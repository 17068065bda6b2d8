"""The layers of pipeline/: an import points to the same package or to a lower layer."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PIPELINE = Path(__file__).resolve().parents[2] / "pipeline"
# Lowest first. Packages of one layer do not import each other.
LAYERS = [
    {"errors"},
    {"config"},
    {"runtime"},
    {"data"},
    {"models"},
    {"attacks"},
    {"regularizer", "evaluation"},
    {"methods", "reports"},
    {"training"},
    {"finetune", "evaluate"},
]
RANK = {package: rank for rank, layer in enumerate(LAYERS) for package in layer}


def module_name(path: Path) -> str:
    parts = path.relative_to(PIPELINE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PIPELINE.rglob("*.py"))}


def imports_of(name: str) -> set[str]:
    """Modules of pipeline that a module imports, also inside functions."""
    path = MODULES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    targets: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            targets |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*(parents if node.level else []), *filter(None, [node.module])])
            submodules = {f"{base}.{alias.name}" for alias in node.names}
            targets |= submodules & MODULES.keys()
            if submodules - MODULES.keys():
                targets.add(base)
    return targets & MODULES.keys() - {name}


def package_of(name: str) -> str:
    return name.split(".")[1]


def test_every_module_is_in_a_layer() -> None:
    assert {package_of(name) for name in MODULES if name != "pipeline"} == set(RANK)


@pytest.mark.parametrize("name", [name for name in MODULES if name != "pipeline"])
def test_imports_point_down(name: str) -> None:
    own = package_of(name)
    for target in imports_of(name) - {"pipeline"}:
        other = package_of(target)
        assert other == own or RANK[other] < RANK[own], f"{name} imports {target}"


def test_no_import_cycle() -> None:
    graph = {
        name: {t for t in imports_of(name) if not name.startswith(f"{t}.")} for name in MODULES
    }
    assert len(list(TopologicalSorter(graph).static_order())) == len(MODULES)


def test_the_top_level_holds_entry_points_and_packages() -> None:
    files = {path.name for path in PIPELINE.iterdir() if path.is_file()}
    assert files == {"__init__.py", "errors.py", "finetune.py", "evaluate.py"}


def test_no_module_of_tests_imports_another() -> None:
    """What they share is in tests/helpers; helpers import no test either."""
    tests = Path(__file__).parents[1]
    for path in tests.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                modules = [node.module or "", *(f"{node.module}.{a.name}" for a in node.names)]
                assert not any(".test_" in name for name in modules), path
