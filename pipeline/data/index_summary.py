"""What an index holds, as lines of text: images by class, format, size and file."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow.parquet as pq

from pipeline.data.index import Index
from pipeline.data.new_index import counted
from pipeline.errors import first_few

_QUANTILES = {"smallest": 0.0, "5 %": 0.05, "median": 0.5, "95 %": 0.95, "largest": 1.0}
_MAX_FILES = 8  # archives that are listed


def class_counts(index: Index) -> np.ndarray:
    """Number of images of each class, (K,) int64, in the order of the labels."""
    return np.bincount(index.label, minlength=index.num_classes)


def kind_counts(index: Index) -> list[tuple[str, int]]:
    """Number of images of each format and mode, such as JPEG RGB, the most frequent one first."""
    table = pq.read_table(index.path, columns=["format", "mode"])
    rows = table.group_by(["format", "mode"]).aggregate([([], "count_all")]).to_pylist()
    kinds = Counter({f"{row['format']} {row['mode']}": row["count_all"] for row in rows})
    return kinds.most_common()


def summary_lines(index: Index) -> list[str]:
    """A description of an index, a line for each property."""
    size = _size(int(index.length.sum(dtype=np.int64)))
    kinds = [f"{count:,} {kind}" for kind, count in kind_counts(index)]
    return [
        f"{index.path}: {counted(len(index), 'image', 'images')} of "
        f"{counted(index.num_classes, 'class', 'classes')}, {size}; files in {index.root}",
        *_class_lines(index),
        f"formats: {', '.join(kinds)}",
        f"width in pixels: {_quantiles(index.width)}",
        f"height in pixels: {_quantiles(index.height)}",
        *_file_lines(index),
    ]


def _class_lines(index: Index) -> list[str]:
    counts, names = class_counts(index), index.classes.identities
    filled, empty = np.flatnonzero(counts), np.flatnonzero(counts == 0)
    smallest = filled[np.argmin(counts[filled])]
    largest = np.argmax(counts)
    lines = [
        f"images by class: smallest {counts[smallest]:,} ({names[smallest]}), median "
        f"{np.median(counts[filled]):,.4g}, largest {counts[largest]:,} ({names[largest]})"
    ]
    if len(empty):
        lines.append(
            f"classes without images: {len(empty):,}: "
            f"{first_few([repr(names[label]) for label in empty])}"
        )
    return lines


def _file_lines(index: Index) -> list[str]:
    """The archives, with their images and their bytes; or how many files there are."""
    counts = np.bincount(index.file, minlength=len(index.files))
    num_bytes = np.bincount(index.file, weights=index.length, minlength=len(index.files))
    archives = [k for k, name in enumerate(index.files) if name in index.file_sizes]
    lines = [f"archives: {len(archives):,}"] if archives else []
    for k in archives[:_MAX_FILES]:
        lines.append(
            f"  {index.files[k]}: {counted(counts[k], 'image', 'images')}, {_size(num_bytes[k])}"
        )
    if len(archives) > _MAX_FILES:
        lines.append(f"  and {len(archives) - _MAX_FILES:,} more")
    others = len(index.files) - len(archives)
    return lines + ([f"files of one image each: {others:,}"] if others else [])


def _quantiles(values: np.ndarray) -> str:
    points = np.quantile(values, list(_QUANTILES.values()), method="nearest")
    return ", ".join(f"{name} {value:,}" for name, value in zip(_QUANTILES, points, strict=True))


def _size(num_bytes: float) -> str:
    """A number of bytes in decimal units."""
    units = ("bytes", "kB", "MB", "GB", "TB")
    power = min(len(units) - 1, (len(str(int(num_bytes))) - 1) // 3)
    return f"{num_bytes / 1000**power:,.4g} {units[power]}"


def csv_rows(index: Index) -> Sequence[tuple[int, str, str, int]]:
    """The label, the id, the name and the number of images of each class."""
    counts = class_counts(index).tolist()
    columns = (range(index.num_classes), index.classes.identities, index.class_names, counts)
    return list(zip(*columns, strict=True))
