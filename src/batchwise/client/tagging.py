"""`tags`: latency, key, job, tool use and labels for the SDK's calls inside a block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

import attrs

from batchwise.models import LatencyLike, LatencyTag, ToolUse, ToolUseLike, to_enum, to_labels, to_latency
from batchwise.request import check_job, check_key

__all__ = ["Tags", "current_tags", "tags"]


def _to_tool_use(value: object) -> ToolUse:
    return to_enum(ToolUse, value, "tool_use")


def _to_labels(value: object) -> Mapping[str, str]:
    return dict(to_labels(value))


@attrs.frozen(kw_only=True)
class Tags:
    """The tags of a call. None: that tag is not given."""

    latency: LatencyTag | None = attrs.field(default=None, converter=attrs.converters.optional(to_latency))
    key: str | None = attrs.field(default=None, converter=attrs.converters.optional(check_key))
    job: str | None = attrs.field(default=None, converter=attrs.converters.optional(check_job))
    labels: Mapping[str, str] | None = attrs.field(default=None, converter=attrs.converters.optional(_to_labels))
    tool_use: ToolUse | None = attrs.field(default=None, converter=attrs.converters.optional(_to_tool_use))

    def over(self, outer: Tags) -> Tags:
        """Return these tags, and those of `outer` for what is not given here."""
        given = {name: value for name, value in attrs.asdict(self, recurse=False).items() if value is not None}
        return attrs.evolve(outer, **given) if given else outer


_NONE = Tags()
_current: ContextVar[Tags] = ContextVar("batchwise_tags", default=_NONE)


def current_tags() -> Tags:
    """The tags of the blocks around the caller."""
    return _current.get()


@contextmanager
def tags(
    *,
    latency: LatencyLike | None = None,
    key: str | None = None,
    job: str | None = None,
    tool_use: ToolUseLike | None = None,
    labels: Mapping[str, str] | None = None,
) -> Iterator[None]:
    """Give these tags to the calls that are made inside the block through a dispatcher's client.

    They replace the arguments of `client()`. A tag that is left out is taken from the surrounding block of `tags`, or
    else from `client()`. The tags are kept in a context variable: tasks that are started inside the block have them,
    new threads do not.

    Args:
        latency: How long you can wait for the answers.
        key: Your name for the call, unique within its job. A second call with the same key gets the same answer.
        job: The job that the calls are added to.
        tool_use: What the calls do with tools.
        labels: Who or what the calls are billed to, such as `{"team": "search"}`. See `Report.by_label`.

    Raises:
        InvalidValueError: An argument has a value that it cannot have.
    """
    given = Tags(latency=latency, key=key, job=job, tool_use=tool_use, labels=labels)
    token = _current.set(given.over(_current.get()))
    try:
        yield
    finally:
        _current.reset(token)
