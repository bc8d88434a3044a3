"""The blocks of README.md and docs/ run as a reader would run them, and print what the page says they print.

| block | what happens |
|---|---|
| ```` ```python ```` | runs; blocks of one page share their names; `>>>` is checked as a doctest |
| ```` ```python title="night.py" ```` | is written to that file |
| ```` ```console ```` | each `$ command` runs, and what is below it is compared with what it prints |
| ```` ```text ```` | is compared with what the block before it printed |
| anything else | is not looked at |

`...` stands for any text. A page has a folder for itself, and a sandbox for itself, which the environment points to;
hidden blocks (`<!-- invisible-code-block: python`) know it as `sandbox`, and the page's path as `page`. One page is
one test, so that pages can run side by side. contributing.md is left out: its commands run the tests.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import doctest
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
from sybil import Document, Example, Region
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser
from sybil.parsers.markdown.lexers import RawFencedCodeBlockLexer

from batchwise import Policy, Reason
from batchwise.planning import routing
from batchwise.sandbox import Sandbox

ROOT = Path(__file__).parent.parent
INFO = re.compile(r'(?P<language>python|console|text)(?: title="(?P<title>[^"]+)")?[^\n]*\n')
RUNS = re.compile(r"^ *(```(python|console)\b|<!-- invisible-code)", re.MULTILINE)
PAGES = [
    path
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if RUNS.search(path.read_text(encoding="utf-8")) and path.name != "contributing.md"
]


def differs(said: str, expected: str) -> str | None:
    said, expected = (text.rstrip() + "\n" for text in (said, expected))
    if doctest.OutputChecker().check_output(expected, said, doctest.ELLIPSIS):
        return None
    return f"the page says:\n{expected}\nit printed:\n{said}"


class Blocks:
    """All blocks that do something, but plain Python ones, which Sybil knows."""

    def __init__(self, cwd: Path) -> None:
        self.cwd = cwd
        self.said = ""
        self.run_python = PythonEvaluator()

    def __call__(self, document: Document) -> Iterator[Region]:
        for region in RawFencedCodeBlockLexer(INFO)(document):
            language, title = region.lexemes["language"], region.lexemes["title"]
            region.parsed = region.lexemes["source"]
            if language != "python":
                region.evaluator = self.console if language == "console" else self.text
            elif title:
                region.evaluator = self.write
            elif not region.parsed.startswith(">>>"):
                region.evaluator = self.python
            if region.evaluator is not None:
                yield region

    def python(self, example: Example) -> None:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            self.run_python(example)
        self.said = out.getvalue()

    def write(self, example: Example) -> None:
        path = self.cwd / example.region.lexemes["title"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(example.parsed, encoding="utf-8")

    def text(self, example: Example) -> str | None:
        return differs(self.said, example.parsed)

    def console(self, example: Example) -> str | None:
        for part in re.split(r"^\$ ", example.parsed, flags=re.MULTILINE)[1:]:
            command, _, expected = part.partition("\n")
            done = subprocess.run(
                ["bash", "-c", command],
                check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120, cwd=self.cwd,
            )  # fmt: skip
            if wrong := differs(done.stdout, expected):
                return f"$ {command}\n{wrong}"
        return None


class Others(PythonCodeBlockParser):
    """Hidden blocks (in HTML comments) and doctests."""

    def __call__(self, document: Document) -> Iterator[Region]:
        for region in super().__call__(document):
            hidden = document.text.startswith("<!--", region.start)
            if hidden or isinstance(region.parsed, doctest.Example):
                yield region


@pytest.mark.parametrize("page", [pytest.param(p, id=str(p.relative_to(ROOT))) for p in PAGES])
def test_page(page, tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith(("ANTHROPIC_", "BATCHWISE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sandbox")
    monkeypatch.setenv("COLUMNS", "80")
    with Sandbox() as sandbox:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", sandbox.base_url)
        others = Others(doctest_optionflags=doctest.ELLIPSIS)
        document = Document.parse(str(page), Blocks(tmp_path), others, SkipParser())
        document.namespace.update(__name__="__page__", sandbox=sandbox, page=page)
        try:
            for example in document.examples():
                example.evaluate()
        finally:
            for path in tmp_path.glob("*.py"):  # what blocks imported of the page's own files
                if getattr(sys.modules.get(path.stem), "__file__", None) == str(path):
                    del sys.modules[path.stem]


def bound_by(node: ast.AST) -> Iterator[str]:
    """The names that a node of a program binds, in whatever scope."""
    match node:
        case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name) | ast.ExceptHandler(name=str(name)):
            yield name
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case ast.alias(name=name, asname=asname):
            yield asname or name.partition(".")[0]


@pytest.mark.parametrize("page", [pytest.param(p, id=str(p.relative_to(ROOT))) for p in PAGES])
def test_a_page_shows_each_name_that_its_code_needs(page):
    """A reader copies what is shown, and not the hidden blocks. `batch_id` is the reader's own."""
    shown = re.sub(r"<!--.*?-->", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    blocks = re.findall(r"^```python\n(.*?)^```", shown, re.DOTALL | re.MULTILINE)
    nodes = list(ast.walk(ast.parse("\n".join(block for block in blocks if not block.startswith(">>>")))))
    known = {*dir(builtins), "batch_id", *(name for node in nodes for name in bound_by(node))}
    used = {node.id for node in nodes if isinstance(node, ast.Name)}
    assert used <= known, used - known


def test_the_example_of_the_readme_is_short():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    example = text.partition("```python\n")[2].partition("```")[0]
    assert 0 < len(example.splitlines()) <= 16


def test_each_field_of_a_policy_and_each_reason_is_explained():
    text = (ROOT / "docs" / "reference" / "policy.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    assert rows[: -len(Reason)] == [field.name for field in attrs.fields(Policy)]
    assert rows[-len(Reason) :] == [rule.reason.value for rule in routing._RULES]
