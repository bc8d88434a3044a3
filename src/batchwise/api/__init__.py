"""The only code that talks to the API. Each method carries out one call and returns a value, or raises a `LaneFault`.

No policy lives here: what a fault means for a request is decided in `batchwise.planning`.
"""

from __future__ import annotations
