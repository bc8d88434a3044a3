"""The lanes: the only code that talks to the API. They carry out one call and report a value or a `LaneFault`.

No policy lives here: what a fault means for a request is decided in `batchwise.planning`.
"""

from __future__ import annotations
