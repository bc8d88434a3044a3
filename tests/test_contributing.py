"""CONTRIBUTING.md: its map has one line for each module."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "batchwise"


def test_the_map_names_each_module_once() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text().split("## Map")[1]
    named = []
    for section in text.split("### `")[1:]:
        folder, rest = section.split("`", 1)
        named += [
            ("" if folder == "src/batchwise/" else folder) + name
            for name in re.findall(r"^\| `(\w+)` \|", rest, re.MULTILINE)
        ]
    there = [
        str(path.relative_to(PACKAGE).with_suffix("")) for path in PACKAGE.rglob("*.py") if path.stem != "__init__"
    ]
    assert sorted(named) == sorted(there)
