"""Classes that a file of labels states."""

from pathlib import Path

import pytest

from pipeline.data.label_files import to_labels
from pipeline.errors import UserError

PATH = Path("labels.txt")


def test_numbers_and_names() -> None:
    labels, classes = to_labels({"a": "2", "b": "0"}, None, PATH)
    assert labels == {"a": 2, "b": 0}
    assert len(classes.identities) == 3
    labels, classes = to_labels({"a": "cat", "b": "ant", "c": "cat"}, None, PATH)
    assert labels == {"a": 1, "b": 0, "c": 1}
    assert [*classes.identities] == ["ant", "cat"]


def test_a_header_is_no_class() -> None:
    """Else the numbers would be sorted as text, and 10 be the class before 2."""
    numbers = {f"im{k}.png": str(k) for k in range(12)}
    with pytest.raises(UserError, match=r"labels\.txt: the classes are numbers, except for label;"):
        to_labels({"filename": "label"} | numbers, None, PATH)
