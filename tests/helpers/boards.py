"""Folders of evaluations for tests of tools/board.py, and the board of them."""

import csv
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

from tests.helpers.in_process import succeed

SCRIPT = "tools/board.py"


def copy_evaluation(source: Path, folder: Path, **changes: object) -> Path:
    """A copy of an evaluation with other values in its summary.json."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("tensorboard"))
    path = folder / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def make_board(out: Path, *options: object) -> str:
    """Run the tool; what it printed."""
    return succeed(SCRIPT, *options, "--out", out)


def csv_rows(out: Path) -> list[dict[str, str]]:
    with (out / "board.csv").open(newline="") as file:
        return list(csv.DictReader(file))


class Page(HTMLParser):
    """A page of a board, as a browser reads its tags."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.scripts: list[dict[str, str | None]] = []  # attributes of the script elements
        self.images: list[str | None] = []
        self.links: list[str] = []
        self.texts: list[str] = []  # without scripts and styles
        self.data = ""  # the JSON of the drawings
        self._inside = ""
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self._inside = tag
        if tag == "script":
            self.scripts.append(values)
        elif tag == "img":
            self.images.append(values.get("src"))
        elif tag == "a":
            self.links.append(values["href"] or "")

    def handle_data(self, data: str) -> None:
        if self._inside == "script" and self.scripts[-1].get("type") == "application/json":
            self.data += data
        elif self._inside not in ("script", "style"):
            self.texts.append(data.strip())

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""
