"""The parameters of a Messages call as type checkers see them: the SDK's own types. At run time there is nothing here.

A dict that is written out is checked key by key, as in a call of `messages.create`. One whose values are `Any`, such as
a `dict[str, Any]` that was read from a file, is taken as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias, Union

if TYPE_CHECKING:
    from anthropic.types.beta import message_create_params as beta
    from anthropic.types.message_create_params import MessageCreateParamsBase, MessageCreateParamsNonStreaming

    class AnyOnly:
        """Nobody has one, so that a mapping of them is only what has `Any` for its values.

        With `Mapping[str, Any]` in its place each dict would pass, whatever is written in it.
        """

    Params: TypeAlias = Union[
        MessageCreateParamsBase,
        MessageCreateParamsNonStreaming,  # the one that knows `stream: False`
        beta.MessageCreateParamsBase,
        beta.MessageCreateParamsNonStreaming,
        Mapping[str, AnyOnly],
    ]
