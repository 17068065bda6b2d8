"""The rows of Parquet files of images, without the images: labels, ids and classes."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa

from pipeline.data.class_list import numbered_classes
from pipeline.data.classes import Classes, first_shift
from pipeline.data.parquet_files import FileFacts, ParquetShards, opened
from pipeline.errors import UserError


@dataclass(frozen=True)
class FileRows:
    """The N rows of a Parquet file, without the bytes of their images."""

    ids: list[str]
    labels: list[int]
    paths: list[str | None]  # the field ``path`` of each image


def read_rows(shards: ParquetShards, facts: Sequence[FileFacts]) -> tuple[list[FileRows], Classes]:
    """Read the labels and the ids of all rows, and the classes.

    An image's id is its path, if all images have different ones; else the name of its file without
    the ending, and its row, which counts from 0.

    Args:
        shards: the files.
        facts: from `pipeline.data.parquet_files.read_facts`.

    Raises:
        UserError: a row has no label, or one outside the classes (names the file and the row); the
            classes of the files do not fit those of the shards.
    """
    classes = _classes(shards, facts[0].class_names)
    labels: list[list[int]] = []
    paths: list[list[str | None]] = []
    for path, file_facts in zip(shards.paths, facts, strict=True):
        column, file_paths = _read_columns(path, file_facts, shards.label_key)
        labels.append(_checked_labels(path, column, None if classes is None else len(classes)))
        paths.append(file_paths)
    if classes is None:
        largest = (max(file_labels, default=0) for file_labels in labels)
        classes = numbered_classes(*max(zip(largest, shards.paths, strict=True)))
    rows = []
    by_path = _are_ids(list(itertools.chain(*paths)))
    for name, file_labels, file_paths in zip(shards.archives, labels, paths, strict=True):
        stem = PurePosixPath(name).with_suffix("")
        numbered = [f"{stem}/{row}" for row in range(len(file_labels))]
        ids = [str(path) for path in file_paths] if by_path else numbered
        rows.append(FileRows(ids, file_labels, file_paths))
    return rows, classes


def _are_ids(paths: list[str | None]) -> bool:
    """Whether each image has a path of its own."""
    return None not in paths and "" not in paths and len(set(paths)) == len(paths)


def _classes(shards: ParquetShards, names: list[str] | None) -> Classes | None:
    """The classes of --classes, or those that the files name; None without either."""
    path, listed = shards.paths[0], shards.classes
    if names is None:
        return listed
    if listed is None:
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise UserError(
                f"{path} names two classes {twice!r}; list the classes with --classes, in the "
                "order of their labels"
            )
        return Classes(names, names)
    if len(names) != len(listed):
        raise UserError(
            f"{path} names {len(names):,} classes, and --classes lists {len(listed):,}; give the "
            "list of these images' classes, in the order of their labels"
        )
    shift = first_shift(_short_names(listed.names), _short_names(names))
    if shift is not None:
        name, label, stored = shift
        raise UserError(
            f"--classes: {name!r} is label {label} of the list and label {stored} of {path}; "
            "labels are kept as they are stored, so give a list in their order"
        )
    return listed


def _short_names(names: Sequence[str]) -> list[str]:
    """The names without the synonyms that may follow a comma."""
    return [name.partition(",")[0].strip() for name in names]


def _read_columns(
    path: Path, facts: FileFacts, label_key: str
) -> tuple[pa.ChunkedArray, list[str | None]]:
    """The labels and the paths of a file."""
    columns = [label_key] if facts.path_leaf is None else [label_key, facts.path_leaf]
    with opened(path) as file:
        table = file.read(columns=columns).flatten()
        labels = table[label_key]
        has_paths = facts.path_leaf is not None
        return labels, table[facts.path_leaf].to_pylist() if has_paths else [None] * len(labels)


def _checked_labels(path: Path, column: pa.ChunkedArray, num_classes: int | None) -> list[int]:
    """The labels of a file.

    Raises:
        UserError: a label is missing, negative or too large; names the first such row.
    """
    if column.null_count:
        row = int(np.argmax(column.is_null().to_numpy()))
        raise UserError(f"{path}: row {row} has no label; write the file again with all labels")
    labels = column.to_numpy()
    largest = np.iinfo(np.int64).max if num_classes is None else num_classes - 1
    wrong = (labels < 0) | (labels > largest)
    if wrong.any():
        row = int(np.argmax(wrong))
        if labels[row] < 0:
            remedy = "is it a part without labels, as test images are? Index the labelled parts"
        else:
            remedy = f"there are {num_classes:,} classes, 0 to {largest:,}; correct the list"
        raise UserError(f"{path}: row {row} has the label {labels[row]}; {remedy}")
    return labels.tolist()
