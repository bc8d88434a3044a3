"""The benchmarks work: what they take from the ledger and from the engine is still there, under the same names."""

from __future__ import annotations

from pathlib import Path

from .benchmarks.harness import child, sandbox
from .benchmarks.stages import STAGES


def test_a_bulk_job_is_measured_as_a_whole_and_by_its_stages(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    with sandbox(batch=0.05) as url:
        found = child("bulk", "keys", url=url, requests=40, size=1_000, where=str(whole))
        assert found["characters"] == 40
        assert child("stages", "stages", url=url, where=str(parts), count=40).keys() >= STAGES.keys()
