"""Every mistake in tests/integration/mistakes ends with its exit code and its one line."""

import re
from pathlib import Path

import pytest

from tests.helpers.in_process import call
from tests.integration.mistakes import (
    config,
    data,
    files,
    layouts,
    models,
    near_misses,
    parquet,
    runs,
    show,
)
from tests.integration.mistakes.case import Case

MODULES = (config, near_misses, data, layouts, models, parquet, runs, show, files)
CASES = [case for module in MODULES for case in module.CASES]


@pytest.mark.parametrize("case", CASES, ids=[case.number for case in CASES])
def test_mistake(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ended = call(*case.argv(tmp_path))
    text = ended.stdout + ended.stderr
    assert ended.code == case.code, text
    assert re.search(case.line, text, re.MULTILINE), text
    assert "Traceback" not in text, text
    if case.code == 2:
        errors = [line for line in ended.stderr.splitlines() if "error: " in line]
        assert len(errors) == 1, text


def test_numbers_are_unique() -> None:
    assert len({case.number for case in CASES}) == len(CASES)
