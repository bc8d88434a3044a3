"""The map and the tables of CONTRIBUTING.md, and the picture of the floors, are those of the code."""

from __future__ import annotations

import re
import runpy
from itertools import pairwise
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


def test_what_decides_is_where_the_table_says() -> None:
    table = (ROOT / "CONTRIBUTING.md").read_text().split("## Where it is decided")[1].split("##")[0]
    places = re.findall(r"((?:`\w+`(?:,| and)? )+)in `([\w/]+\.py)`", table)
    assert len(places) > 10
    for names, path in places:
        code = (PACKAGE / path).read_text()
        for name in re.findall(r"\w+", names.replace(" and ", " ")):
            assert re.search(rf"^\s*(?:(?:async )?def |class )?{name}\b[(:]", code, re.MULTILINE), (name, path)


def test_the_picture_shows_the_floors_of_the_import_contracts() -> None:
    script = ROOT / "docs" / "explanation" / "architecture.py"
    drawing = runpy.run_path(str(script))
    assert script.with_suffix(".svg").read_text(encoding="utf-8") == drawing["drawn"]()
    layers = re.search(r"^layers = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.DOTALL | re.MULTILINE)
    assert layers is not None
    floors = [set(re.findall(r"\w+", line)) for line in layers[1].splitlines()]
    heights = [
        {floors.index(next(floor for floor in floors if name in floor)) for box in boxes for name in box[0].split(", ")}
        for _, _, boxes in drawing["FLOORS"]
    ]
    assert all(max(upper) < min(lower) for upper, lower in pairwise(heights))
