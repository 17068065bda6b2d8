"""Parquet files of images, as Hugging Face's datasets library writes them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

HUGGING_FACE = b"huggingface"  # key of the library's metadata
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
# How version 5.2 of the library stores images; earlier ones compress all columns by snappy.
UNCOMPRESSED: dict[str, Any] = {
    "compression": {"image.bytes": "none", "image.path": "none", "label": "snappy"},
    "use_dictionary": ["label"],
    "column_encoding": {"image.bytes": "PLAIN", "image.path": "PLAIN"},
    "use_content_defined_chunking": True,
    "write_page_index": True,
}


def metadata(names: Sequence[str] | None, label_key: str = "label") -> dict[bytes, bytes]:
    """The library's metadata with the names of the classes; without them for None."""
    if names is None:
        return {}
    label = {"names": list(names), "_type": "ClassLabel"}
    features = {"image": {"_type": "Image"}, label_key: label}
    return {HUGGING_FACE: json.dumps({"info": {"features": features}}).encode()}


def write_parquet(
    path: Path,
    images: Sequence[Any],
    labels: Sequence[Any] | pa.Array,
    names: Sequence[str] | None = None,
    kind: pa.DataType = IMAGE,
    **options: Any,
) -> Path:
    """Write a file of the columns image and label.

    Args:
        path: the file.
        images: bytes, None, or (bytes, path) of each image.
        labels: the label of each image.
        names: names of the classes.
        kind: type of the column of images.
        options: of pyarrow's writer; by default it compresses by snappy.
    """
    if pa.types.is_struct(kind):
        pairs = [image if isinstance(image, tuple) else (image, None) for image in images]
        images = [None if p == (None, None) else {"bytes": p[0], "path": p[1]} for p in pairs]
    table = pa.table({"image": pa.array(images, kind), "label": pa.array(labels)})
    pq.write_table(table.replace_schema_metadata(metadata(names)), path, **options)
    return path
