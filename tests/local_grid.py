"""A Flower grid in one process: real serialisation, no sockets and no processes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.task_identity import TaskIdentity

Reply = Callable[[Message, Context], Message]


def travel(message: Message) -> Message:
    """The message as it arrives: taken apart into Flower's objects and put together again."""
    contents = {key: value.deflate() for key, value in get_all_nested_objects(message).items()}
    copy = inflate_object_from_contents(message.object_id, contents)
    assert isinstance(copy, Message)
    return copy


class LocalGrid(Grid):
    """Answers at once, from functions; `down` nodes are not online."""

    def __init__(self, nodes: dict[int, Reply]) -> None:
        self.nodes, self.down = nodes, set[int]()
        self.log: list[tuple[int, str]] = []
        self._replies: dict[str, Message] = {}
        self._count = itertools.count()
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1

    @property
    def run(self) -> Any:
        return None

    def set_run(self, run: Any) -> None: ...

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return [node for node in self.nodes if node not in self.down]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for original in messages:
            message = travel(original)
            message.metadata.__dict__["_message_id"] = name = f"m{next(self._count)}"
            node = message.metadata.dst_node_id
            self.log.append((node, message.metadata.message_type))
            reply = self.nodes[node](message, Context(1, node, {}, RecordDict(), {}))
            self._replies[name] = travel(reply)
            ids.append(name)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._replies.pop(name) for name in list(message_ids) if name in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        raise NotImplementedError
