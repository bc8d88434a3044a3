"""The tests on every Python and on the oldest and the newest SDK: `nox`, or `nox -s "tests-3.10(sdk='oldest')"`."""

from __future__ import annotations

import nox

nox.options.default_venv_backend = "venv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["lint", "tests", "docs"]

GROUPS = nox.project.load_toml("pyproject.toml")
SDKS = {"oldest": "anthropic==1.4.*", "newest": "anthropic<3"}  # the bounds in pyproject.toml


def _install(session: nox.Session, *groups: str) -> None:
    needs = [need for group in groups for need in nox.project.dependency_groups(GROUPS, group)]
    session.install("--editable", ".", *needs)


@nox.session(python=["3.10", "3.11", "3.12", "3.13"])
@nox.parametrize("sdk", list(SDKS))
def tests(session: nox.Session, sdk: str) -> None:
    _install(session, "test", "integrations")
    session.install("--upgrade", SDKS[sdk])
    session.run("python", "-c", "import anthropic, sys; print(sys.version, anthropic.__version__)")
    arguments = session.posargs or ["-n", "2"]
    session.run("pytest", "-m", "not soak", "--ignore=tests/benchmarks", *arguments, env={"HYPOTHESIS_PROFILE": "ci"})


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
