"""The wording of code and documents: phrases that CONTRIBUTING.md's rules exclude."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("pipeline", "launchers", "tools", "tests", "configs", "docs")
FILES = sorted(
    path
    for folder in FOLDERS
    for ending in ("py", "md", "yaml")
    for path in (ROOT / folder).rglob(f"*.{ending}")
    if path.name != Path(__file__).name
)
PHRASES = re.compile(
    r"\b(let go|roads?|goes on|the way of|what tells|mends?|whoever|so many|turned round"
    r"|in its words|of one's own|is told|kin|reckons?)\b"
)


def test_plain_words() -> None:
    hits = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in FILES
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if PHRASES.search(line)
    ]
    assert hits == []
