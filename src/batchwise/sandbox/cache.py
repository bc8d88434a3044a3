"""The prompt cache: requests write to it and read from it, by their `cache_control` breakpoints."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

_LIVES = {"5m": 300.0, "1h": 3_600.0}
"""For how many seconds a prefix is kept after its last use (API documentation, prompt caching, 2026)."""
_MINIMA = {
    "claude-opus": 4_096,
    "claude-haiku": 4_096,
    "claude-sonnet-4-6": 2_048,
}
"""The fewest tokens of a prefix that is cached, by the longest beginning of a model's name (the same source)."""
_FEWEST = 1_024


class Cached(NamedTuple):
    """Input tokens of one request that were read from the cache, and written to it for 5 minutes or an hour."""

    read: int = 0
    written_5m: int = 0
    written_1h: int = 0


NOTHING = Cached()


def cached_in(usage: Mapping[str, Any]) -> Cached:
    """Return what a usage object says of the cache."""
    split = usage.get("cache_creation") or {}
    hour = split.get("ephemeral_1h_input_tokens") or 0
    written = usage.get("cache_creation_input_tokens") or 0
    return Cached(usage.get("cache_read_input_tokens") or 0, written - hour, hour)


class _Prefix(NamedTuple):
    digest: bytes
    tokens: int
    life: str


@dataclass
class _Entry:
    writer: str
    """The batch whose row wrote it; empty: a Messages call did."""
    written_at: float
    expires: float
    life: str


class PromptCache:
    """The cached prefixes of each workspace, lane and model: what a Messages call writes, no batch reads."""

    def __init__(self) -> None:
        self._entries: dict[tuple[str, str, str, bytes], _Entry] = {}
        self._lock = threading.Lock()

    def use(
        self,
        params: Mapping[str, Any],
        *,
        workspace: str,
        begun: float,
        done: float,
        batch: str = "",
        hit: Callable[[bool], bool] = lambda _beside: True,
        minimum: int | None = None,
    ) -> Cached:
        """Let one request read its longest cached prefix, and write the rest up to its last breakpoint.

        Args:
            params: its params.
            workspace: the workspace of its caller.
            begun: when it looks the prefixes up, in seconds.
            done: when it has written them.
            batch: the id of its batch; empty: it is a Messages call.
            hit: says whether a cached prefix is found; its argument: whether a row of the same batch wrote it.
            minimum: the fewest tokens of a prefix that is cached; None: the model's.

        Returns:
            The tokens that it read and wrote.
        """
        model = str(params.get("model"))
        least = _minimum(model) if minimum is None else minimum
        prefixes = [prefix for prefix in _prefixes(params) if prefix.tokens >= least]
        if not prefixes:
            return NOTHING
        scope = workspace, "batch" if batch else "sync", model
        read, written = 0, {"5m": 0, "1h": 0}
        with self._lock:
            for prefix in reversed(prefixes):
                entry = self._entries.get((*scope, prefix.digest))
                beside = entry is not None and bool(batch) and entry.writer == batch
                if entry is None or not (beside or entry.written_at <= begun < entry.expires) or not hit(beside):
                    continue
                entry.expires = max(entry.expires, done + _LIVES[entry.life])
                read = prefix.tokens
                break
            before = read
            for prefix in prefixes:
                if prefix.tokens <= read:
                    continue
                written[prefix.life] += prefix.tokens - before
                before = prefix.tokens
                place = (*scope, prefix.digest)
                known = self._entries.get(place)
                if known is None or not known.written_at <= begun < known.expires:
                    self._entries[place] = _Entry(batch, done, done + _LIVES[prefix.life], prefix.life)
        return Cached(read, written["5m"], written["1h"])


def _minimum(model: str) -> int:
    fitting = [name for name in _MINIMA if model.startswith(name)]
    return _MINIMA[max(fitting, key=len)] if fitting else _FEWEST


def _prefixes(params: Mapping[str, Any]) -> Iterator[_Prefix]:
    """Yield the prefixes that end at a breakpoint, in the order of the prompt: tools, system, messages."""
    blocks = list(_blocks(params))
    overall = _life(params)
    if overall is not None and blocks:
        blocks[-1] = (blocks[-1][0], blocks[-1][1] or overall)
    if not any(life for _, life in blocks):
        return
    digest, size = hashlib.sha256(), 0
    for block, life in blocks:
        encoded = orjson.dumps(block, option=orjson.OPT_SORT_KEYS)
        digest.update(encoded)
        size += len(encoded)
        if life is not None:
            yield _Prefix(digest.digest(), size // 4, life)


def misordered(params: Mapping[str, Any]) -> bool:
    """Say whether a breakpoint for an hour comes after one for five minutes, which the API refuses."""
    lives = [life for _, life in _blocks(params) if life is not None]
    return "5m" in lives and "1h" in lives[lives.index("5m") :]


def _blocks(params: Mapping[str, Any]) -> Iterator[tuple[Any, str | None]]:
    """Yield each block of a prompt without its breakpoint, and the time to live that the breakpoint asks for."""
    for tool in params.get("tools") or ():
        yield _bare(tool)
    system = params.get("system") or ()
    yield from [(system, None)] if isinstance(system, str) else map(_bare, system)
    for message in params.get("messages") or ():
        content = message.get("content")
        for block in [content] if isinstance(content, str) else content or ():
            bare, life = _bare(block)
            yield (message.get("role"), bare), life


def _bare(block: Any) -> tuple[Any, str | None]:
    if not isinstance(block, Mapping):
        return block, None
    return {name: value for name, value in block.items() if name != "cache_control"}, _life(block)


def _life(block: Mapping[str, Any]) -> str | None:
    control = block.get("cache_control")
    return (control.get("ttl") or "5m") if isinstance(control, Mapping) else None
