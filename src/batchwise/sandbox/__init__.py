"""A loopback server that the Anthropic SDK cannot tell from the API: for tests, documentation and demos.

It imports nothing else of batchwise and shares no code with it, so it can serve as an independent witness of what
was bought.
"""

from __future__ import annotations

from .books import Books, Purchase, Tokens
from .faults import KNOWN_FAULTS, Fault, UnknownFaultError
from .latency import Distribution, Exponential, Fixed, LogNormal, Uniform
from .limits import RateLimits
from .replies import Reply, echo, turns
from .server import Sandbox

__all__ = [
    "KNOWN_FAULTS",
    "Books",
    "Distribution",
    "Exponential",
    "Fault",
    "Fixed",
    "LogNormal",
    "Purchase",
    "RateLimits",
    "Reply",
    "Sandbox",
    "Tokens",
    "Uniform",
    "UnknownFaultError",
    "echo",
    "turns",
]
