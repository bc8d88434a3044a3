"""The tests on every Python and on the oldest and the newest SDK: `nox`, or `nox -s "tests-3.10(sdk='oldest')"`."""

from __future__ import annotations

import re
from itertools import chain
from pathlib import Path

import nox

nox.options.default_venv_backend = "venv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["lint", "tests", "oldest", "docs"]

GROUPS = nox.project.load_toml("pyproject.toml")
SDKS = {"oldest": "anthropic==1.4.*", "newest": "anthropic<3"}  # the bounds in pyproject.toml


def _install(session: nox.Session, *groups: str, options: tuple[str, ...] = ()) -> None:
    needs = [need for group in groups for need in nox.project.dependency_groups(GROUPS, group)]
    session.install(*options, "--editable", ".", *needs)


def _oldest() -> list[str]:
    """The least version that pyproject.toml allows of each dependency, those of the extras too, for pip to keep to."""
    project = GROUPS["project"]
    needs = chain(project["dependencies"], *project["optional-dependencies"].values())
    return [re.sub(r"(?:\[.*\])?>=([\d.]+)[^;]*", r"==\1", need) for need in needs]


def _test(session: nox.Session, *options: str) -> None:
    session.run("python", "-c", "import anthropic, sys; print(sys.version, anthropic.__version__)")
    options = ("-m", "not soak", "--ignore=tests/benchmarks", *options, *(session.posargs or ["-n", "2"]))
    session.run("pytest", *options, env={"HYPOTHESIS_PROFILE": "ci"})


@nox.session(python=["3.10", "3.11", "3.12", "3.13"])
@nox.parametrize("sdk", list(SDKS))
def tests(session: nox.Session, sdk: str) -> None:
    _install(session, "test", "integrations")
    session.install("--upgrade", SDKS[sdk])
    _test(session)


@nox.session(python="3.10")  # some of these have no wheels for a newer one
def oldest(session: nox.Session) -> None:
    """The tests with the least version of every dependency."""
    constraints = Path(session.create_tmp()) / "constraints.txt"
    # matplotlib 3.8 calls what pyparsing 3.3 warns of.
    constraints.write_text("\n".join([*_oldest(), "pyparsing<3.3", ""]), encoding="utf-8")
    _install(session, "test", "integrations", options=("--constraint", str(constraints)))
    # docs/reference/cli.md has the words of the newest typer.
    _test(session, "--deselect=tests/cli/test_verbs.py::test_the_reference_is_what_the_program_says")


@nox.session
def lint(session: nox.Session) -> None:
    _install(session, "test", "lint")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    session.run("lint-imports", "--no-logo")


@nox.session
def docs(session: nox.Session) -> None:
    _install(session, "docs")
    session.run("zensical", "build", "--strict", "--clean")
