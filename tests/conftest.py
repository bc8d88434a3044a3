"""Hypothesis profiles: `dev` while writing, `ci` (derandomised) for `make test`, `soak` for long runs, `mutants`."""

from __future__ import annotations

import hashlib
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings

from .postgres import Schemas, start

settings.register_profile("dev", max_examples=50, deadline=None)
settings.register_profile(
    "ci", max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("soak", max_examples=2_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile(  # a mutant's first failure is enough: it need not be made small
    "mutants",
    max_examples=20,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what it runs in the background so. Programs that tests interrupt would inherit it, and never end.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> str:
    """The URL of a Postgres server that all workers share."""
    base = tmp_path_factory.getbasetemp()
    run = base if worker_id == "master" else base.parent
    # Not below pytest's folders: on behalf of root the server runs as a user who may not enter those.
    digest = hashlib.blake2b(str(run.resolve()).encode(), digest_size=8).hexdigest()
    url: str = start(Path(tempfile.gettempdir()) / f"batchwise-postgres-{digest}").get_uri()
    return url


@pytest.fixture
def schemas(postgres: str) -> Iterator[Schemas]:
    """URLs of ledgers in Postgres, dropped after the test."""
    made = Schemas(postgres)
    yield made
    made.close()
