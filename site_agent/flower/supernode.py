"""The stock SuperNode, with three faults of flwr 1.41 mended.

1. It takes a TLS handshake that times out, as when a firewall drops a connection, for a wrong certificate and gives
   up. Its main loop ends, but the thread of its Runtime API keeps the process alive, so that nobody notices. Here
   the process ends, and its keeper starts it again.
2. A run that ends while the node takes a message of it leaves a task behind whose message never becomes whole: the
   runner waits for it, two hours long, and answers nothing else. Here the half message is cleared away.
3. After each message it waits for *any* reply. If that is one to a run that has ended, the reply to the message
   itself lies until another message comes. Here it waits for the reply to the message.

The last two replace two internal functions, which is one more reason why flwr is pinned (docs/adr/0003).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar

from flwr.app import Message
from flwr.supercore.object_store import ObjectStore
from flwr.supercore.run import RunNotRunningException
from flwr.supernode import start_client_internal as loop
from flwr.supernode.cli import flower_supernode
from flwr.supernode.nodestate import NodeState

P = ParamSpec("P")
R = TypeVar("R")

PATIENCE_SECONDS = 600.0
"""The coordinator's messages live so long; a reply that has not come by then is not waited for."""


class _LateError(Exception):
    """No reply came in time."""


def _ordinary(call: Callable[P, R]) -> Callable[P, R]:
    """The same call; that its run has ended is an error like any other, after which flwr clears away what it began."""

    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return call(*args, **kwargs)
        except RunNotRunningException:
            raise RuntimeError("the run has ended") from None

    return called


class _Replies:
    """A node's state, of which the wait for a reply ends."""

    def __init__(self, state: NodeState, until: float) -> None:
        self._state, self._until = state, until

    def __getattr__(self, name: str) -> Any:
        return getattr(self._state, name)

    def get_messages_legacy(self, *, is_reply: bool) -> Sequence[Message]:
        replies = self._state.get_messages_legacy(is_reply=is_reply)
        if not replies and time.monotonic() > self._until:
            raise _LateError
        return replies


class Turns:
    """The two halves of the SuperNode's loop: one message is pulled, then its reply is pushed.

    Args:
        patience: seconds for which a reply is waited for.
    """

    def __init__(self, patience: float = PATIENCE_SECONDS) -> None:
        self._patience = patience
        self._pull, self._push = loop._pull_and_store_message, loop._push_messages
        self._unanswered = ""

    def pull(
        self,
        *,
        receive: Callable[[], tuple[Message, Any] | None],
        pull_object: Callable[[int, str], bytes],
        confirm_message_received: Callable[[int, str], None],
        **others: Any,
    ) -> int | None:
        """Take a message with all that belongs to it, or nothing of it; returns its run."""

        def noted() -> tuple[Message, Any] | None:
            received = receive()
            self._unanswered = received[0].metadata.message_id if received else ""
            return received

        return self._pull(
            receive=noted,
            pull_object=_ordinary(pull_object),
            confirm_message_received=_ordinary(confirm_message_received),
            **others,
        )

    def push(
        self,
        *,
        state: NodeState,
        object_store: ObjectStore,
        send: Callable[..., tuple[set[str], str]],
        push_object: Callable[[int, str, str, bytes], None],
    ) -> None:
        """Send replies until the one to the last message has gone, or its time is over."""

        def noted(message: Message, *rest: Any) -> tuple[set[str], str]:
            if message.metadata.reply_to_message_id == self._unanswered:
                self._unanswered = ""
            return send(message, *rest)

        replies: Any = _Replies(state, time.monotonic() + self._patience)
        with suppress(_LateError):
            while self._unanswered:
                self._push(state=replies, object_store=object_store, send=noted, push_object=push_object)


def main() -> None:
    """Run until the SuperNode ends for whatever reason; never returns."""
    code: object = 1
    turns = Turns()
    loop._pull_and_store_message = turns.pull  # type: ignore[assignment]
    loop._push_messages = turns.push  # type: ignore[assignment]
    try:
        flower_supernode()
    except SystemExit as ended:
        code = ended.code
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # Not sys.exit, which waits for the threads.
        os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    main()
