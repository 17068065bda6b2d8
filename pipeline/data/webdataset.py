"""WebDataset shards to rows of an index: a tar has members KEY.jpg with KEY.cls or KEY.json.

KEY is a member's path up to the first dot of its last part, as the webdataset library has it.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from pipeline.config.text import did_you_mean
from pipeline.data.class_list import numbered_classes
from pipeline.data.classes import Classes
from pipeline.data.image_check import is_image_name
from pipeline.data.scan_rows import Member, ReportProgress, Scan, printable
from pipeline.data.shards import ShardFiles
from pipeline.data.tar_members import check_complete, file_size, tar_members
from pipeline.errors import UserError, first_few

_JSON_LABEL = "label"  # the key of KEY.json, unless another is given
_Location = tuple[int, int]  # offset and length in the shard, in bytes


@dataclass(frozen=True)
class Shards(ShardFiles):
    """Shards in natural order, and how their labels are stored.

    Attributes:
        classes: the classes whose numbers the samples have. None: the numbers 0 to the largest.
        label_key: key of KEY.json that holds the class number. None: KEY.cls, or else "label".
        repeated_keys: whether a key may occur in several shards.
    """

    classes: Classes | None = None
    label_key: str | None = None
    repeated_keys: bool = False


def scan_shards(shards: Shards, progress: ReportProgress = lambda _: None) -> tuple[Scan, Classes]:
    """Scan shards: the headers of their members and images, and the files with the labels.

    Args:
        shards: the shards.
        progress: called with the number of bytes scanned so far.

    Returns:
        The scan, whose ids are the shard's name without its ending and the key; and the classes.

    Raises:
        UserError: a shard is missing or cut short, a key occurs twice, or a sample has no class.
    """
    scan, num_bytes, largest = Scan(), 0, (0, shards.root)
    shard_of: dict[str, str] = {}
    for name, path in shards.archives.items():
        samples, dotted = _samples(path)
        for member in dotted:
            scan.reject(member, name, "a name of several dots; the key would end at the first one")
        if not shards.repeated_keys:
            _check_keys(samples, name, shard_of)
        with path.open("rb") as source:
            for key, files in samples.items():
                if "image" not in files:
                    scan.reject(key, name, "no image")
                    continue
                number = _class_number(shards, path, source, key, files)
                largest = max(largest, (number, path))
                sample_id = f"{PurePosixPath(name).with_suffix('')}/{key}"
                scan.add(Member(sample_id, name, *files["image"], number), source)
                progress(num_bytes + sum(files["image"]))
        num_bytes += file_size(path)
    return scan, shards.classes or numbered_classes(*largest)


def _samples(path: Path) -> tuple[dict[str, dict[str, _Location]], list[str]]:
    """Read the headers of a shard's members.

    Returns:
        The position of the "image", the "cls" and the "json" of each key; and the names of images
        such as KEY.depth.png, which are no sample's image.

    Raises:
        UserError: the shard cannot be read or is cut short, or a key has two such members.
    """
    samples: dict[str, dict[str, _Location]] = {}
    dotted: list[str] = []
    size = file_size(path)
    for info in tar_members(path, complete=True):
        check_complete(path, info, size)
        name = info.name.removeprefix("./")
        folder, _, last = name.rpartition("/")
        stem, _, ending = last.partition(".")
        if is_image_name(last) and "." in ending:
            dotted.append(name)
            continue
        kind = "image" if is_image_name(last) else ending.lower()
        if not stem or kind not in ("image", "cls", "json"):
            continue
        key = f"{folder}/{stem}" if folder else stem
        files = samples.setdefault(key, {})
        if kind in files:
            raise UserError(
                f"{printable(path)} has a second {kind} of the key {printable(key)}, "
                f"{printable(name)}; write the shard again with one sample for each key"
            )
        files[kind] = (info.offset_data, info.size)
    return samples, dotted


def _check_keys(samples: dict[str, Any], name: str, shard_of: dict[str, str]) -> None:
    """Refuse keys of earlier shards, and add those of this one to ``shard_of``."""
    for key in samples:
        if key in shard_of:
            raise UserError(
                f"the key {printable(key)} is in {shard_of[key]} and in {name}; are these copies? "
                "--repeated-keys accepts keys that are unique only inside their shards"
            )
        shard_of[key] = name


def _class_number(
    shards: Shards, path: Path, source: BinaryIO, key: str, files: dict[str, _Location]
) -> int:
    """The class number of a sample, from its KEY.cls or KEY.json."""
    kinds = ["json"] if shards.label_key is not None else ["cls", "json"]
    kind = next((kind for kind in kinds if kind in files), None)
    where = f"{path}: {printable(key)}"
    if kind is None:
        missing = " or ".join(f"{printable(key)}.{kind}" for kind in kinds)
        raise UserError(f"{where} has no class: {missing} is missing; write the shard again")
    offset, length = files[kind]
    content = os.pread(source.fileno(), length, offset)
    if kind == "json":
        value = _json_label(content, shards.label_key or _JSON_LABEL, where)
    else:
        value = content.decode(errors="backslashreplace").strip()
    if not (value.isascii() and value.isdecimal()):
        raise UserError(
            f"{where}.{kind} holds {value[:40]!r}, not a class number (0, 1, ...); write the "
            "shard again with numbers"
        )
    number = int(value[:20])
    if shards.classes is not None and number >= len(shards.classes):
        raise UserError(
            f"{where}.{kind} holds the class number {number}; --classes lists "
            f"{len(shards.classes)} classes, 0 to {len(shards.classes) - 1}"
        )
    return number


def _json_label(content: bytes, label_key: str, where: str) -> str:
    """The value of a sample's JSON under a key, as text."""
    try:
        values = json.loads(content)
    except ValueError as error:  # includes bytes that are not UTF-8
        raise UserError(f"{where}.json is not JSON ({error}); write the shard again") from None
    if not isinstance(values, dict) or label_key not in values:
        names = sorted(values) if isinstance(values, dict) else []
        raise UserError(
            f"{where}.json has no {label_key!r}; its keys are: {first_few(names) or 'none'}; name "
            f"the one with the class number by --label-key{did_you_mean(label_key, names)}"
        )
    return json.dumps(values[label_key]).strip('"')
