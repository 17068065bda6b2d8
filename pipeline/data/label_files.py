"""Files with the labels of images in one folder: lines of names and classes, or Kaggle's CSV."""

import csv
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from pipeline.config.text import did_you_mean
from pipeline.data.class_list import numbered_classes
from pipeline.data.classes import Classes
from pipeline.errors import UserError

_CSV_COLUMNS = ["ImageId", "PredictionString"]


def read_label_lines(path: Path) -> dict[str, str]:
    """Read lines of an image's name and its class: the text after the last tab, or space.

    Returns:
        The class of each name, in the file's order.

    Raises:
        UserError: the file is missing, not text or empty, a line has one word, or a name is
            listed twice.
    """
    pairs = []
    for number, line in enumerate(_read_lines(path, "--labels"), 1):
        if not line.strip():
            continue
        name, *label = line.strip().rsplit("\t" if "\t" in line else None, 1)
        if not label:
            raise UserError(
                f"--labels: line {number} of {path} is {line.strip()!r}; give an image's name and "
                "its class in each line, separated by a tab or a space"
            )
        pairs.append((number, name.strip(), label[0].strip()))
    return _without_repeats(path, "--labels", pairs)


def read_kaggle_solution(path: Path) -> dict[str, str]:
    """Read LOC_val_solution.csv: ImageId, and a PredictionString that begins with a WordNet id.

    Returns:
        The WordNet id of each image, by its name without the ending.

    Raises:
        UserError: the file is missing or is not such a CSV, or an image is listed twice.
    """
    remedy = "take LOC_val_solution.csv from Kaggle's download"
    rows = csv.reader(_read_lines(path, "kaggle"), strict=True)
    pairs = []
    try:
        if next(rows, None) != _CSV_COLUMNS:
            raise ValueError(f"its first line is not {','.join(_CSV_COLUMNS)}")
        for row in rows:
            image, words = row[0], row[1].split() if len(row) == 2 else []
            if not image or not words:
                raise ValueError(f"line {rows.line_num} is not an image and its class")
            pairs.append((rows.line_num, image, words[0]))
    except (csv.Error, ValueError, IndexError) as error:
        raise UserError(f"{path} cannot be read ({error}); {remedy}") from None
    return _without_repeats(path, "kaggle", pairs)


def _is_number(word: str) -> bool:
    """Whether a class is a whole number from 0 up."""
    return word.isascii() and word.isdecimal()


def _read_lines(path: Path, option: str) -> list[str]:
    """The lines of a text file that is not empty."""
    if not path.is_file():
        raise UserError(f"{option}: no file {path}; it states the class of each image")
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{option}: {path} cannot be read as text ({error})") from None
    if not any(line.strip() for line in lines):
        raise UserError(f"{option}: {path} is empty; it states the class of each image")
    return lines


def _without_repeats(
    path: Path, option: str, pairs: Iterable[tuple[int, str, str]]
) -> dict[str, str]:
    """The class of each name, from triples of line, name and class."""
    class_of: dict[str, str] = {}
    for number, name, label in pairs:
        if name in class_of:
            raise UserError(
                f"{option}: {path} lists {name} twice, again in line {number}; remove one line"
            )
        class_of[name] = label
    return class_of


def to_labels(
    class_of: Mapping[str, str], classes: Classes | None, path: Path
) -> tuple[dict[str, int], Classes]:
    """Labels for the classes that a file states: class ids, or numbers that count from 0.

    Args:
        class_of: the class of each image.
        classes: the classes in the order of their labels. None: the numbers from 0 to the largest
            one; if not all are numbers, the ids that occur, sorted.
        path: the file, for messages.

    Returns:
        The label of each image, and the classes.

    Raises:
        UserError: a class is not among ``classes``.
    """
    words = set(class_of.values())
    are_numbers = all(map(_is_number, words))
    if classes is None:
        words_of_others = [word for word in class_of.values() if not _is_number(word)]
        if 0 < len(words_of_others) <= 2 < len(words):
            raise UserError(
                f"{path}: the classes are numbers, except for {words_of_others[0]}; remove that "
                "line if it is a header, or list the classes with --classes"
            )
        largest = max(map(int, words)) if are_numbers else None
        ids = sorted(words)
        classes = Classes(ids, ids) if largest is None else numbered_classes(largest, path)
    label_of = {name: label for label, name in enumerate(classes.identities)}
    by_number = are_numbers and not words <= label_of.keys()
    if by_number:
        label_of = {word: int(word) for word in words if int(word) < len(classes)}
    for name, word in class_of.items():
        if word not in label_of:
            hint = did_you_mean(word, classes.identities)
            if by_number:
                hint = f", which are numbered 0 to {len(classes) - 1}"
            raise UserError(
                f"{path}: the class {word} of {name} is not among the {len(classes)} classes"
                f"{hint or '; correct the file, or the list of classes'}"
            )
    return {name: label_of[word] for name, word in class_of.items()}, classes


class LabelFile:
    """The label of each image of a folder, and which of them have been used."""

    def __init__(self, path: Path, labels: Mapping[str, int]) -> None:
        self.path = path
        self._labels = labels  # by the path in the folder, with or without its ending
        self._unused = dict.fromkeys(labels)

    def label(self, name: str) -> int | None:
        """The label of the file ``name``, a path in the folder; None if it is not listed."""
        for key in (name, str(PurePosixPath(name).with_suffix(""))):
            if key in self._labels:
                self._unused.pop(key, None)
                return self._labels[key]
        return None

    def unused(self) -> Iterator[str]:
        """Names that no file has had so far."""
        return iter(self._unused)
