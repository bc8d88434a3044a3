"""The tables of the ledger, written once for every database, and their migrations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from batchwise.errors import LedgerError

__all__ = ["MIGRATIONS", "check_version", "statements"]

# Words of the schema: status 0 queued, 1 in flight, 2 settled; lane 0 sync, 1 batch; outcome 0 succeeded, 1 failed,
# 2 expired, 3 canceled, 4 refused; times in microseconds since 1970 (UTC); 0 in `batch`, `run`, `staged`: none.
#
# Why it has this shape:
# - Bodies and result lines are kept out of `request`, whose rows move often and are scanned.
# - A request that a batch has answered is not touched: that it has a result says that it is settled, whatever its
#   status (results come shuffled, so each would dirty a page of its own). Others change to status 2 as well, which
#   takes them out of the partial indices.
# - `cohort` counts the unsettled requests of each terms in each place, `tally` the settled ones: nothing that the
#   planner or a report asks for ever scans requests, so its cost does not grow with what has settled.
# - A bulk's rows are inserted with terms that are `staged`; accepting it touches terms and cohorts, not rows.
# - What results that settled together have in common stands once, in `result_group`, whose results are those from
#   `first` to `last`: a bulk's results come by the thousand. A job's results are found by its groups, in order. What
#   has no job settles one by one, and is looked for in the order of settling: an index would be one more page to write.
# - A bulk dispatch without a name has a job without one. Its requests stay in the shared scope, where their keys are
#   unique: `part` lists them by ranges of numbers, each with the ordinal of its first one in the bulk. Their
#   results are all after the cursor `job.results_after`; all other jobs have none.
# - Numbers are those of the last row and one; `deleted` has the highest of rows that are gone: no number is given twice
#   (a counter would be one page more that each transaction writes).
# - `turn.body` is the body before the turn: the one that continues it takes its place, and beginning anew restores it.
# - Sums of money are text, added up by `plus`: SQLite's integers end at 9.2 million USD in pico-USD, and then become
#   floats without a word.
# - `prefix`: when a batch was sealed that writes a shared prefix of prompts to the API's cache, when a row of a batch
#   last used it, and until when it is kept there for those that ask for an hour; `hits`: how many rows of batches read
#   theirs from the cache, by how the batch treats it.
# - `label` sums what settled requests cost by their labels, which their terms hold.
# - `waste.unseen`: the most that possible doubles may have cost (pico-USD), which counts against a spend limit.
# - `adopted`: the keys of a batch made elsewhere by their custom_ids, and which request each row was taken for (0: its
#   row has not been seen). Gone when the batch is closed.
# - `epoch`: how often the lease had gone to another holder when a batch was sealed; `meta` has how often by now.
# - There are foreign keys where the lookup they need is cheap in both directions. `request.terms` has none: it would
#   need one more index over all requests. `body` has none: bulks insert both, and `Records.delete` deletes both.
_FIRST = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL){clustered};
CREATE TABLE deleted (name TEXT PRIMARY KEY, last {integer} NOT NULL){clustered};
INSERT INTO deleted VALUES ('request', 0), ('result', 0);
CREATE TABLE run (
    id {numbered},
    pid {integer} NOT NULL,
    started {integer} NOT NULL,
    ended {integer} NOT NULL DEFAULT 0
);
CREATE TABLE job (
    id {numbered},
    name {bytes} UNIQUE,
    visible {integer} NOT NULL DEFAULT 0,
    positions {integer} NOT NULL DEFAULT 0,
    results_after {integer}
);
INSERT INTO job (id, name, visible) VALUES (0, NULL, 1);
CREATE TABLE part (
    job {integer} NOT NULL REFERENCES job,
    first {integer} NOT NULL,
    last {integer} NOT NULL,
    ordinal {integer} NOT NULL,
    PRIMARY KEY (job, first)
){clustered};
CREATE INDEX part_ordinal ON part (job, ordinal);
CREATE TABLE intake (id {numbered}, job {integer} NOT NULL REFERENCES job, run {integer} NOT NULL);
CREATE TABLE terms (
    id {numbered},
    job {integer} NOT NULL REFERENCES job,
    staged {integer} NOT NULL,
    blocking {integer} NOT NULL,
    digest {bytes},
    data {bytes} NOT NULL
);
CREATE UNIQUE INDEX terms_digest ON terms (digest) WHERE digest IS NOT NULL;
CREATE INDEX terms_staged ON terms (staged) WHERE staged > 0;
CREATE TABLE request (
    id {integer} PRIMARY KEY,
    job {integer} NOT NULL,
    key {bytes} NOT NULL,
    terms {integer} NOT NULL,
    size {integer} NOT NULL,
    lane {integer} NOT NULL,
    status {integer} NOT NULL DEFAULT 0,
    batch {integer} NOT NULL DEFAULT 0,
    run {integer} NOT NULL DEFAULT 0,
    attempts {integer} NOT NULL DEFAULT 0,
    calls {integer} NOT NULL DEFAULT 0,
    abandoned {integer} NOT NULL DEFAULT 0,
    UNIQUE (job, key)
);
CREATE INDEX request_queued ON request (terms{row}) WHERE status = 0;
CREATE INDEX request_running ON request (run) WHERE status = 1 AND lane = 0;
CREATE TABLE body (id {integer} PRIMARY KEY, params {bytes} NOT NULL);
CREATE TABLE turn (
    request {integer} NOT NULL REFERENCES request ON DELETE CASCADE,
    n {integer} NOT NULL,
    line {bytes} NOT NULL,
    body {bytes},
    PRIMARY KEY (request, n)
);
CREATE TABLE repeated (
    id {numbered},
    intake {integer} NOT NULL REFERENCES intake ON DELETE CASCADE,
    request {integer} NOT NULL,
    terms {integer} NOT NULL
);
CREATE INDEX repeated_intake ON repeated (intake);
CREATE TABLE batch (
    id {numbered},
    live {integer} NOT NULL DEFAULT 1,
    nonce TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL,
    remote_id TEXT,
    requests {integer} NOT NULL,
    size {integer} NOT NULL,
    betas TEXT NOT NULL,
    sealed_at {integer} NOT NULL,
    posting_at {integer},
    posting_server {integer},
    last_byte_at {integer},
    watermark TEXT,
    candidates TEXT NOT NULL DEFAULT '[]',
    struck TEXT NOT NULL DEFAULT '[]',
    created_at {integer},
    expires_at {integer},
    ended_at {integer},
    counts TEXT,
    cancel_at {integer},
    polled_at {integer},
    failures {integer} NOT NULL DEFAULT 0,
    canceled {integer} NOT NULL DEFAULT 0,
    adopted {integer} NOT NULL DEFAULT 0,
    caching TEXT NOT NULL DEFAULT 'as_is',
    job {integer} NOT NULL,
    model TEXT NOT NULL,
    first {integer} NOT NULL,
    last {integer} NOT NULL,
    epoch {integer} NOT NULL DEFAULT 0
);
CREATE INDEX batch_live ON batch (id) WHERE live = 1;
CREATE INDEX batch_remote ON batch (remote_id) WHERE remote_id IS NOT NULL;
CREATE TABLE adopted (
    batch {integer} NOT NULL REFERENCES batch,
    custom_id TEXT NOT NULL,
    key {bytes} NOT NULL,
    request {integer} NOT NULL DEFAULT 0,
    PRIMARY KEY (batch, custom_id)
){clustered};
CREATE UNIQUE INDEX adopted_request ON adopted (request) WHERE request > 0;
CREATE TABLE cohort (
    terms {integer} NOT NULL REFERENCES terms,
    lane {integer} NOT NULL,
    status {integer} NOT NULL,
    batch {integer} NOT NULL,
    requests {integer} NOT NULL,
    size {integer} NOT NULL,
    since {integer} NOT NULL,
    flush {integer} NOT NULL,
    PRIMARY KEY (terms, lane, status, batch)
){clustered};
CREATE INDEX cohort_batch ON cohort (batch) WHERE batch > 0;
CREATE TABLE result_group (
    last {integer} PRIMARY KEY,
    first {integer} NOT NULL,
    job {integer} NOT NULL,
    terms {integer} NOT NULL,
    outcome {integer} NOT NULL,
    lane {integer} NOT NULL,
    batch {integer} NOT NULL,
    attempts {integer} NOT NULL,
    settled_at {integer} NOT NULL,
    met {integer}
);
CREATE INDEX result_group_job ON result_group (job{last}) WHERE job > 0;
CREATE TABLE result (
    seq {integer} PRIMARY KEY,
    request {integer} NOT NULL,
    cost {integer},
    saved {integer},
    cache_saved {integer} NOT NULL,
    line {bytes} NOT NULL
);
CREATE UNIQUE INDEX result_request ON result (request);
CREATE TABLE tally (
    job {integer} NOT NULL,
    lane {integer} NOT NULL,
    outcome {integer} NOT NULL,
    requests {integer} NOT NULL DEFAULT 0,
    purged {integer} NOT NULL DEFAULT 0,
    cost TEXT NOT NULL DEFAULT '0',
    saved TEXT NOT NULL DEFAULT '0',
    unpriced {integer} NOT NULL DEFAULT 0,
    met {integer} NOT NULL DEFAULT 0,
    missed {integer} NOT NULL DEFAULT 0,
    lateness {integer} NOT NULL DEFAULT 0,
    attempts {integer} NOT NULL DEFAULT 0,
    input_tokens {integer} NOT NULL DEFAULT 0,
    cache_tokens {integer} NOT NULL DEFAULT 0,
    truncated {integer} NOT NULL DEFAULT 0,
    cache_written {integer} NOT NULL DEFAULT 0,
    cache_saved TEXT NOT NULL DEFAULT '0',
    PRIMARY KEY (job, lane, outcome)
){clustered};
CREATE TABLE prefix (digest TEXT PRIMARY KEY, tried {integer}, used {integer}, kept {integer}){clustered};
CREATE TABLE hits (caching TEXT PRIMARY KEY, hit {integer} NOT NULL, requests {integer} NOT NULL){clustered};
CREATE TABLE label (
    job {integer} NOT NULL,
    name TEXT NOT NULL,
    value TEXT NOT NULL,
    cost TEXT NOT NULL,
    PRIMARY KEY (job, name, value)
){clustered};
CREATE TABLE spend (minute {integer} PRIMARY KEY, cost TEXT NOT NULL);
CREATE TABLE waste (
    job {integer} PRIMARY KEY,
    wasted TEXT NOT NULL DEFAULT '0',
    possible_doubles {integer} NOT NULL DEFAULT 0,
    unseen TEXT NOT NULL DEFAULT '0'
);
CREATE TABLE late (request {integer} NOT NULL, batch {integer} NOT NULL, PRIMARY KEY (request, batch)){clustered};
"""

MIGRATIONS: tuple[str, ...] = (_FIRST,)
"""Each brings the schema one version on; never change one that was released, append."""


def check_version(name: str, version: int) -> None:
    """Refuse a ledger of a newer version than this batchwise knows.

    Raises:
        LedgerError: It is.
    """
    known = len(MIGRATIONS)
    if version > known:
        raise LedgerError(
            f"the ledger {name} has schema version {version}, this batchwise knows up to {known}; "
            "upgrade the package batchwise-claude, or use another ledger"
        )


def statements(migrations: Sequence[str], words: Mapping[str, str]) -> Iterator[str]:
    """The statements of migrations as a database reads them.

    Args:
        migrations: Some of `MIGRATIONS`.
        words: What the database calls `integer` (64 bits), `bytes`, and `numbered` (a primary key that it gives);
            what it says behind a table that is kept in the order of its primary key (`clustered`), and behind the
            other columns of an index so that rows come out of it in their own order (`row`, `last`).
    """
    for migration in migrations:
        yield from migration.format_map(words).strip().rstrip(";").split(";\n")
