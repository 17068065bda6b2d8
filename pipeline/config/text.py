"""Reading YAML files of experiments, nested options as one level, near misses of names."""

import difflib
import itertools
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import UserError

_MAX_FILES = 10_000  # of a folder, that are compared with a name
_EXAMPLE = "sections of options, as 'train: {epochs: 3}'"


class Loader(yaml.SafeLoader):
    """YAML in which a mapping must not repeat a key."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping.

        Raises:
            ConstructorError: a key occurs twice; with its line.
        """
        lines: dict[Any, int] = {}
        for key_node, _ in node.value:
            key = key_node.value
            if isinstance(key, str) and key in lines and key != "<<":
                problem = f"{key} is in line {lines[key]} already"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            if isinstance(key, str):
                lines[key] = key_node.start_mark.line + 1
        return super().construct_mapping(node, deep)


def parse_yaml(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        yaml.YAMLError: bad syntax, or a key that occurs twice.
    """
    return yaml.load(text, Loader)  # a SafeLoader, which creates plain values only


def read_yaml(path: Path, folders: Iterable[Path] = ()) -> dict[str, Any]:
    """The sections in a YAML file.

    Args:
        path: the file.
        folders: folders that are searched for a similar name, in addition to the file's own folder.

    Raises:
        UserError: the file cannot be read, or contains no sections; names the file and the line.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder; --config takes a YAML file, as configs/demo.yaml")
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        hint = did_you_mean_file(path, folders)
        raise UserError(f"--config: no file {path}{hint}") from None
    except OSError as error:
        raise UserError(f"--config: {path} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}{_where(error)}: no valid YAML: {_problem(error)}") from None
    if not isinstance(values, dict):
        holds = {type(None): "is empty", list: "holds a list"}.get(type(values), f"holds {values}")
        raise UserError(f"{path} {holds}; it must hold {_EXAMPLE}")
    return values


def _where(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f", line {mark.line + 1}" if mark else ""


def _problem(error: yaml.YAMLError) -> str:
    return getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with ``section.option`` for keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, name + ".") if isinstance(value, dict) else {name: value}
    return flat


def did_you_mean(word: str, names: Iterable[str], prefix: str = "") -> str:
    """A hint with the names nearest to a word: "; did you mean A or B?", or an empty string.

    Args:
        word: the misspelt name; an option's section may be missing.
        names: all valid names.
        prefix: put before each name in the hint.
    """
    return _question([prefix + name for name in nearest(word, names)])


def did_you_mean_file(path: Path, folders: Iterable[Path] = (), names: Iterable[str] = ()) -> str:
    """`did_you_mean` for a file that does not exist.

    Args:
        path: the file. Files of its folder are candidates, those with the same ending first; a
            name without an ending is also compared with names without theirs. A folder that cannot
            be listed has no candidates.
        folders: further folders whose files are candidates.
        names: names that are valid instead of a file.
    """
    files: list[Path] = []
    for folder in (*folders, path.parent):
        with suppress(OSError):
            files += itertools.islice(folder.iterdir(), _MAX_FILES)
    same_ending = {file.name: file for file in files if file.suffix == path.suffix}
    stems = {file.stem: file for file in files if not path.suffix}
    for candidates in (same_ending | {name: name for name in names}, stems):
        near = [candidates[name] for name in nearest(path.name, candidates)]
        if near:
            return _question(near)
    by_name = {file.name: file for file in files}
    return _question([by_name[name] for name in nearest(path.name, by_name)])


def _question(names: Sequence[object]) -> str:
    return f"; did you mean {' or '.join(map(str, names))}?" if names else ""


def nearest(word: str, names: Iterable[str]) -> list[str]:
    """At most three names similar to the word; see `did_you_mean`."""
    by_plain: dict[str, str] = {}
    for name in names:
        by_plain.setdefault(_plain(name), name)
    word = _plain(word)
    near = (
        [plain for plain in by_plain if plain == word]
        or [plain for plain in by_plain if plain.endswith(f".{word}")]
        or sorted((p for p in by_plain if len(word) > 2 and p.startswith(word)), key=len)
        or _similar(word, by_plain, 0.8)
        or _of_other_sections(word, by_plain)
        or _similar(word, by_plain, 0.6 if len(word) <= 4 else 0.7)
        or _with_similar_end(word, by_plain)
    )
    return [by_plain[plain] for plain in near[:3]]


def _plain(name: str) -> str:
    return name.replace("-", "_").lower()


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _similar(word: str, names: Iterable[str], cutoff: float) -> list[str]:
    return difflib.get_close_matches(word, names, n=1, cutoff=cutoff)


def _of_other_sections(word: str, names: Iterable[str]) -> list[str]:
    """The options of the same name in other sections, the most similar section first."""
    same = [name for name in names if "." in word and _last(name) == _last(word)]
    return difflib.get_close_matches(word, same, n=len(same) or 1, cutoff=0)


def _with_similar_end(word: str, names: Iterable[str]) -> list[str]:
    ends = {_last(name): name for name in names}
    return [ends[end] for end in _similar(_last(word), ends, 0.75)]
