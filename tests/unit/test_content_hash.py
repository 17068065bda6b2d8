"""Fingerprints of images whose lengths do not depend on their content."""

import hashlib
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.data import demo, index
from pipeline.data.index import Index
from pipeline.data.index_format import METADATA_KEY
from pipeline.errors import UserError
from tests.helpers.images import encode, index_tar, picture


def images(path: Path, kind: str, first: int, number: int = 8) -> Index:
    """The index of images that differ by their seeds."""
    names = {f"c/{k}.{kind.lower()}": picture(40, 30, first + k) for k in range(number)}
    return index_tar(path, {name: encode(image, kind) for name, image in names.items()})


def by_lengths(read: Index) -> str:
    """The fingerprint of earlier versions."""
    columns = (read.offset, read.length, read.label)
    return hashlib.sha256(b"".join(column.tobytes() for column in columns)).hexdigest()[:16]


def test_images_of_one_length_are_told_apart_by_their_content(tmp_path: Path) -> None:
    one, same, other = (
        images(tmp_path / name, "BMP", first)
        for name, first in (("a.tar", 0), ("b.tar", 0), ("c.tar", 100))
    )
    assert by_lengths(one) == by_lengths(other)
    assert one.fingerprint == same.fingerprint
    assert one.fingerprint != other.fingerprint
    paths = [[Path(first.path), Path(other.path)] for first in (one, other)]
    joined = []
    for number, (first, second) in enumerate((paths[0], paths[0][::-1])):
        index.join([first, second], tmp_path / f"{number}.parquet")
        joined.append(index.read(str(tmp_path / f"{number}.parquet")).content_hash)
    assert None not in joined
    assert joined[0] != joined[1]


@pytest.mark.parametrize("number", [1, 2, 8])
def test_other_fingerprints_stay(tmp_path: Path, number: int) -> None:
    for kind in ("JPEG", "PNG"):
        read = images(tmp_path / f"{kind}.tar", kind, 0, number)
        assert read.fingerprint == by_lengths(read)
    assert images(tmp_path / "one.tar", "BMP", 0, 1).content_hash is None


def test_the_embedded_digits_keep_their_fingerprint() -> None:
    for path in demo.prepare().values():
        read = index.read(str(path))
        assert read.fingerprint == by_lengths(read)


def test_indices_of_earlier_versions_keep_their_fingerprint(tmp_path: Path) -> None:
    read = images(tmp_path / "a.tar", "BMP", 0)
    table = pq.read_table(read.path)
    values = json.loads(table.schema.metadata[METADATA_KEY])

    def stored(content_hash: object) -> Index:
        metadata = {**values, "content_hash": content_hash}
        if content_hash is None:
            del metadata["content_hash"]
        changed = table.replace_schema_metadata({METADATA_KEY: json.dumps(metadata).encode()})
        pq.write_table(changed, tmp_path / "earlier.parquet")
        return index.read(str(tmp_path / "earlier.parquet"))

    assert stored(values["content_hash"]).fingerprint == read.fingerprint
    assert stored(None).fingerprint == by_lengths(read)
    with pytest.raises(UserError, match=r"damaged metadata \(content_hash\)"):
        stored(3)


def test_files_that_are_missing_are_not_hashed(tmp_path: Path) -> None:
    read = images(tmp_path / "a.tar", "BMP", 0)
    rows = pq.read_table(read.path)
    index.write(tmp_path / "b.parquet", rows, tmp_path / "nowhere", read.classes)
    assert index.read(str(tmp_path / "b.parquet")).content_hash is None
