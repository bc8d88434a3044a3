"""How long the submission for a waiting caller is held back so that more work can join."""

from __future__ import annotations

from datetime import datetime, timedelta

import attrs

__all__ = ["MOST_LINGERS", "Gathering"]

MOST_LINGERS = 5
"""After so many lingers everything is submitted, even if more work joins: our choice."""


@attrs.frozen
class Gathering:
    """Waits that are submitted together.

    A batch has to be sent by its `submit_by` whoever waits, so that moment has no say here.

    Attributes:
        first: When the first of them began.
        last: When something joined last: a wait, or a request that was accepted.
    """

    first: datetime
    last: datetime

    def joined(self, now: datetime) -> Gathering:
        """Return the gathering after something joined."""
        return attrs.evolve(self, last=now)

    def ends(self, linger: timedelta) -> datetime:
        """Return when it is submitted, if nothing more joins."""
        return min(self.last + linger, self.first + MOST_LINGERS * linger)

    def over(self, now: datetime, linger: timedelta) -> bool:
        """Whether it is to be submitted now; also if the clock was set back since it began."""
        return not self.first <= now < self.ends(linger)
