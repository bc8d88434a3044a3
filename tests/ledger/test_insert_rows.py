"""Many rows by each statement: the same as one by one."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from batchwise.ledger.sqlite_database import SqliteDatabase

COLUMNS = {
    "integers": st.integers(-(2**63), 2**63 - 1),
    "some": st.none() | st.integers(0, 9),
    "bytes": st.binary(max_size=9),
    "words": st.text(max_size=3),
}


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[int], list[Any]]:
    """Numbers of the rows, and columns: constants, or a value for each row."""
    count = draw(st.sampled_from([1, 2, 31, 32, 33, 100]))
    numbers = draw(st.permutations(range(count)))
    columns: list[Any] = [numbers]
    for values in draw(st.lists(st.sampled_from(sorted(COLUMNS)), max_size=4)):
        constant = values == "integers" and draw(st.booleans())
        few = draw(st.lists(COLUMNS[values], min_size=1, max_size=5))
        columns.append(few[0] if constant else [few[n % len(few)] for n in range(count)])
    return numbers, columns


@given(table=tables(), taken=st.sets(st.integers(0, 99), max_size=3))
def test_rows_are_inserted_as_they_are_given(table: tuple[list[int], list[Any]], taken: set[int]) -> None:
    numbers, columns = table
    names = ", ".join(f"c{index}" for index in range(1, len(columns)))
    with closing(sqlite3.connect(":memory:")) as db:
        db.execute(f"CREATE TABLE t (id INTEGER PRIMARY KEY{', ' * bool(names)}{names})")
        db.executemany("INSERT INTO t (id) VALUES (?)", [(number,) for number in taken])
        before = db.execute("SELECT * FROM t").fetchall()
        inserted = SqliteDatabase.insert_rows(db, "t", columns)
        spread = [[column] * len(numbers) if isinstance(column, int) else column for column in columns]
        expected = [row for row in zip(*spread, strict=True) if row[0] not in taken]
        assert inserted == (len(expected) == len(numbers))
        assert sorted(db.execute("SELECT * FROM t"), key=lambda row: row[0]) == sorted(
            [*before, *expected], key=lambda row: row[0]
        )
