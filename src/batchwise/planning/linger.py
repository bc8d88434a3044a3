"""How long a wait lets others join before what it waits for is submitted."""

from __future__ import annotations

from datetime import datetime, timedelta

import attrs

__all__ = ["MOST_LINGERS", "Gathering"]

MOST_LINGERS = 5
"""So many lingers after the first wait everything is submitted, however many go on joining: our choice."""


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
        """The same, after something joined."""
        return attrs.evolve(self, last=now)

    def ends(self, linger: timedelta) -> datetime:
        """When it is submitted, if nothing joins any more."""
        return min(self.last + linger, self.first + MOST_LINGERS * linger)

    def over(self, now: datetime, linger: timedelta) -> bool:
        """Whether it is to be submitted now; so it is if the clock was set back since it began."""
        return not self.first <= now < self.ends(linger)
