"""What values look like: a sentence or a table for `print`, tables for notebooks, a page that needs no network."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import attrs
import pytest

import batchwise as bw
from batchwise import events
from batchwise.models import BatchRecord
from batchwise.planning.sync_schedule import Shortfall
from batchwise.sandbox import Sandbox
from tests.strategies import params

NOW = datetime(2026, 11, 27, 12, tzinfo=timezone.utc)
HOUR = timedelta(hours=1)
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
HOSTILE = "<script>alert('x')</script>"

PROGRESS = bw.Progress(
    total=3,
    by_status={bw.Status.SETTLED: 1, bw.Status.IN_FLIGHT: 2},
    by_outcome={bw.Outcome.SUCCEEDED: 1},
    by_lane={bw.Lane.BATCH: 2},
    batches=(
        bw.RunningBatch(
            remote_id="msgbatch_1",
            requests=2,
            elapsed=HOUR,
            expected_end=(NOW, NOW + HOUR),
            rescue_at=NOW + 2 * HOUR,
            status="in_progress",
        ),
    ),
    at_risk=2,
    suspended={bw.Lane.SYNC: HOSTILE},
    next_due=NOW,
    last_error="a pass failed once",
)
REPORT = bw.Report(
    requests=3,
    cost=Decimal("1.5"),
    cost_by_lane={bw.Lane.SYNC: Decimal("0.5"), bw.Lane.BATCH: Decimal(1)},
    saved=Decimal(1),
    wasted=Decimal("0.25"),
    unpriced=0,
    met=2,
    missed=1,
    refused=0,
    truncated=1,
    worst_lateness=HOUR,
    attempts=4,
    possible_doubles=1,
    cache_read_tokens=0,
    cache_written_tokens=0,
    cache_saved=Decimal(0),
    input_tokens=99,
    by_label={("team", HOSTILE): Decimal("1.5")},
)
BATCHES = tuple(
    BatchRecord(
        remote_id=f"msgbatch_{n}{HOSTILE}",
        requests=10 * n,
        model="claude-sonnet-5",
        created_at=NOW,
        ended_at=None if n == 3 else NOW + n * HOUR,
        canceled_at=NOW + HOUR if n == 2 else None,
        deadline=NOW + 30 * HOUR if n < 3 else None,
        expected=(HOUR, 2 * HOUR),
    )
    for n in (1, 2, 3)
)
PLANS = bw.compare_slas(
    [30 * HOUR, 48 * HOUR],
    arrivals_per_hour=100, model="claude-sonnet-5", mean_input_tokens=1_000, mean_output_tokens=500,
    request_bytes=4_000,
)  # fmt: skip


class Checked(HTMLParser):
    """Takes HTML apart: tags that match, and nothing that is fetched or run."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(html)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, given: Any) -> None:
        assert tag not in {"script", "iframe", "img", "object"}
        for name, value in given:
            assert not name.startswith("on")
            if name in {"src", "href", "xlink:href"}:
                assert value.startswith(("data:", "#")), value
        if tag not in {"meta", "link"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, given: Any) -> None:
        self.handle_starttag(tag, given)
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(self.text)


@pytest.mark.parametrize(
    ("value", "says", "shows"),
    [
        (PROGRESS, ["3 requests: 1 settled, 2 in_flight", "rescue at 2026-11-27 14:00:00"], ["msgbatch_1", HOSTILE]),
        (REPORT, ["3 requests settled, 1 of them truncated", "1 missed, the worst by 1 h"], ["$1.50", HOSTILE]),
        (bw.sla_cadence(30 * HOUR), ["submit every 4 h"], ["28 h"]),
        (PLANS[0], ["100 requests an hour within 30 h on the batch lane: submit every"], ["30 h"]),
        (PLANS, ["SLA   lane"], ["48 h"]),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_a_value_is_read_as_words_and_as_a_table(value: Any, says: list[str], shows: list[str]) -> None:
    text, html = str(value), value._repr_html_()
    for words in says:
        assert words in text
    assert "datetime." not in text + html
    shown = Checked(html).words
    for words in shows:
        assert words in shown


def test_one_request_and_a_deadline_that_a_refusal_missed_before_it_came_are_said_plainly() -> None:
    one = attrs.evolve(
        PROGRESS, total=1, at_risk=1, overdue=1, batches=(attrs.evolve(PROGRESS.batches[0], requests=1),)
    )
    report = str(attrs.evolve(REPORT, requests=1, attempts=1, unpriced=1, met=0, worst_lateness=timedelta(0)))
    assert "0 met, 1 missed\n" in report, "nothing came late: there is no worst"
    for text in (str(one), one._repr_html_(), report):
        assert "1 request" in text
        assert "1 requests" not in text
    assert "1 request settled, 1 of them truncated; 1 attempt\n" in report


def test_a_job_says_where_it_stands(tmp_path: Path) -> None:
    with Sandbox() as sandbox:
        with bw.Dispatcher(sandbox.client(), ledger=tmp_path / "ledger.db") as d:
            job = d.dispatch_all([bw.Request(params(f"p{n}"), latency=HOUR * 30) for n in range(3)], job=HOSTILE)
            job.wait()
            assert str(job).startswith(f"job {HOSTILE!a}: 3 requests: 3 settled")
            shown = job._repr_html_()
            assert "3 requests" in Checked(shown).words
            assert "<tbody></tbody>" not in shown, "a table without a row"
            page = job.report().to_html()
        assert str(job) == f"job {HOSTILE!a}"
        assert "job" in Checked(job._repr_html_()).words
    shown = Checked(page).words
    assert sandbox.books.batches[0].id[-8:] in shown
    assert "Forecast against what it took" in shown


def test_the_page_of_a_report_needs_no_network(tmp_path: Path) -> None:
    page = attrs.evolve(REPORT, batches=BATCHES).to_html(title=HOSTILE)
    shown = Checked(page).words
    for words in ("$1.00", "sync lane", "Batches against their deadlines", "hours since 2026-11-27 12:00 UTC"):
        assert words in shown
    assert not re.search(r"https?://(?!www\.w3\.org)", page)
    assert "@import" not in page


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_shows_the_page_without_network_and_without_complaint(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(attrs.evolve(REPORT, batches=BATCHES).to_html(title="nightly"), encoding="utf-8")
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        "--host-resolver-rules=MAP * ~NOTFOUND",
    ]
    said = subprocess.run(
        [str(CHROMIUM), *options, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "Batches against their deadlines" in said.stdout
    assert "CONSOLE" not in said.stderr


def test_a_report_without_batches_has_a_page() -> None:
    assert "Batches against" not in Checked(REPORT.to_html()).words


def test_a_cadence_is_drawn_the_same_each_time() -> None:
    cadence = bw.sla_cadence(30 * HOUR)
    shown = Checked(cadence.to_svg()).words
    for words in ("waiting 4 h", "window 24 h", "reserve 2 h", "deadline 30 h"):
        assert words in shown
    assert cadence.to_svg() == cadence.to_svg()


def test_numbers_are_worded_alike_large_and_small():
    many = bw.Progress(
        total=2_000,
        by_status={bw.Status.SETTLED: 2_000},
        by_outcome={bw.Outcome.SUCCEEDED: 2_000},
        by_lane={},
    )
    assert str(many) == "2,000 requests: 2,000 settled\noutcomes: 2,000 succeeded"
    little = attrs.evolve(REPORT, cost_by_lane={bw.Lane.BATCH: Decimal("0.00036")}, met=2_000)
    assert "deadlines: 2,000 met" in str(little)
    assert "batch lane $0.00036" in little.to_html()


LONG = timedelta(hours=24, minutes=15)
FILLERS = {
    "datetime": NOW, "timedelta": LONG, "Decimal": Decimal(1), "int": 1, "str": "x", "bool": True, "Lane": bw.Lane.SYNC,
    "Outcome": bw.Outcome.FAILED, "tuple[str": ("x",), "tuple[Lane": (bw.Lane.SYNC,),
}  # fmt: skip


def event(kind: Any) -> events.Event:
    """An event of this kind, of whatever happened for a day and a quarter of an hour."""
    fields = {field.name: str(field.type) for field in attrs.fields(kind)}
    made: events.Event = kind(
        **{name: next(FILLERS[told] for told in FILLERS if type_.startswith(told)) for name, type_ in fields.items()}
    )
    return made


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(bw.BatchwiseError) as failed:
        call()
    return str(failed.value)


def timed_out() -> str:
    with Sandbox() as sandbox, bw.Dispatcher(sandbox.client(), ledger=":memory:") as d:
        waiting = d.dispatch(params("later"), latency=30 * HOUR)
        return refused(lambda: waiting.result(timeout=timedelta(milliseconds=1)))


@pytest.mark.parametrize(
    "told",
    [
        *[lambda kind=kind: str(event(kind)) for kind in get_args(events.Event)],
        lambda: str(attrs.evolve(PROGRESS, batches=(attrs.evolve(PROGRESS.batches[0], elapsed=LONG),))),
        lambda: attrs.evolve(PROGRESS, batches=(attrs.evolve(PROGRESS.batches[0], elapsed=LONG),))._repr_html_(),
        lambda: str(attrs.evolve(REPORT, worst_lateness=LONG)),
        lambda: attrs.evolve(REPORT, worst_lateness=LONG)._repr_html_(),
        lambda: str(bw.sla_cadence(LONG)) + bw.sla_cadence(LONG)._repr_html_(),
        lambda: str(PLANS) + PLANS._repr_html_() + str(PLANS[0]) + PLANS[0]._repr_html_(),
        lambda: str(
            bw.compare_slas(
                [24 * HOUR],
                arrivals_per_hour=100,
                model="claude-sonnet-5",
                mean_input_tokens=1,
                mean_output_tokens=1,
                request_bytes=9,
            )[0]
        ),
        lambda: str(Shortfall(start=NOW, end=NOW, needed=LONG, available=HOUR, resource="", requests=2)),
        lambda: str(Shortfall(start=NOW, end=NOW, needed=LONG, available=-LONG, resource="", requests=2)),
        lambda: refused(lambda: bw.sla_cadence(24 * HOUR)),
        lambda: refused(bw.sla_cadence(31 * HOUR).cron),
        lambda: refused(lambda: bw.sla_cadence(LONG).with_interval(LONG)),
        lambda: refused(lambda: attrs.evolve(bw.sla_cadence(LONG), buffer=LONG)),
        lambda: refused(lambda: attrs.evolve(bw.sla_cadence(LONG), sla=LONG - HOUR / 60, buffer=HOUR * 14 / 60)),
        lambda: refused(lambda: bw.Policy(window=-LONG)),
        lambda: refused(lambda: bw.Policy(min_reserve=-LONG)),
        lambda: refused(lambda: bw.Policy(window=timedelta(days=40_000))),
        lambda: refused(lambda: bw.Request(params("x"), latency=timedelta(days=40_000))),
        timed_out,
    ],
)
def test_no_duration_is_shown_as_python_writes_it(told: Callable[[], str]) -> None:
    words = re.sub(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d", "", told())  # moments have a clock
    assert words
    assert not re.search(r"\bdays?, |\d:\d\d:\d\d|timedelta", words), words


def test_the_shortest_sla_is_said_in_hours_and_minutes() -> None:
    assert "a batch is 24 h 15 min, plus the interval" in refused(lambda: bw.sla_cadence(24 * HOUR))
