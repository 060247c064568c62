"""The site's answers to the coordinator's messages: calls in, states out, sealed blocks both ways.

Three actions, all of them on the exchange folder and nothing else; `room` is "round" or "sum". Every message and every
answer also names its `protocol` and `software`:

    query.call      {room, round, call, material}            -> the round's SiteStatus, and a small answer's bytes
    query.block     {room, sha256, offset, size}             -> {} and the bytes
    query.deliver   {room, sha256, total, offset}, the bytes -> {held}

Only the steps of sums bring material with the call, and only if it is small, or send an answer with the status.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TypeVar

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from protocol.canonical import digest
from protocol.errors import FederationError, ProtocolError, VersionError
from protocol.version import PROTOCOL, SOFTWARE, check_protocol
from site_agent.exchange import Exchange, SiteStatus

CONFIG, BLOCK, DATA = "config", "block", "data"
RAW = "raw"
"""Serialisation type of our arrays: plain bytes, so that no side parses an .npy header of the other."""

SMALL = 256 << 10
"""Bytes of an answer in a sum that travel with the status."""

Handler = Callable[[RecordDict], RecordDict]
V = TypeVar("V", int, str, bytes)

_log = logging.getLogger(__name__)


def make_app(exchange: Exchange, site: str) -> ClientApp:
    """The ClientApp of a site; it runs in the site's own runner, never from a shipped bundle.

    An error goes back as the sentence of its FederationError; anything unforeseen
    goes to the log, and the coordinator learns only that there is something in it.
    """
    app = ClientApp()

    def room(config: ConfigRecord) -> Exchange:
        name = _value(config, "room", str)
        if name not in {"round", "sum"}:
            raise ProtocolError("The coordinator's message names a room that there is not")
        exchange.note_heard()
        return exchange if name == "round" else exchange.sums

    def call(content: RecordDict) -> RecordDict:
        try:
            config = _config(content)
        except VersionError:
            _keep_call(content, exchange)
            raise
        place = room(config)
        place.put_call(_value(config, "call", bytes))
        round_id = _value(config, "round", str)
        status = place.status(round_id) or SiteStatus(round=round_id, state="unknown")
        if place is not exchange and "material" in config and status.state != "sealed":
            data = _value(config, "material", bytes)
            if status.sha256 != (sha256 := digest(data)):
                place.put_result_block(sha256, len(data), 0, data)
        if place is not exchange and status.state == "sealed" and 0 < status.size <= SMALL:
            return _reply(status.model_dump(), place.read_block(status.sha256, 0, SMALL))
        return _reply(status.model_dump())

    def block(content: RecordDict) -> RecordDict:
        config = _config(content)
        data = room(config).read_block(
            _value(config, "sha256", str), _value(config, "offset", int), _value(config, "size", int)
        )
        return _reply({}, data)

    def deliver(content: RecordDict) -> RecordDict:
        config = _config(content)
        held = room(config).put_result_block(
            _value(config, "sha256", str),
            _value(config, "total", int),
            _value(config, "offset", int),
            _block(content),
        )
        return _reply({"held": held})

    for handler in (call, block, deliver):
        app.query(handler.__name__)(_guarded(handler, site))
    return app


def _guarded(handler: Handler, site: str) -> Callable[[Message, Context], Message]:
    def answer(message: Message, context: Context) -> Message:
        del context
        try:
            return Message(handler(message.content), reply_to=message)
        except FederationError as error:
            reason = str(error)
        except Exception:
            # What went wrong may name paths or data of the site: it stays in the site's log.
            _log.exception("%s failed", handler.__name__)
            reason = f"Site {site} could not answer; the reason is in its log."
        return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)

    return answer


def _reply(config: Mapping[str, int | str], data: bytes | None = None) -> RecordDict:
    stated: dict[str, int | str] = {"protocol": PROTOCOL, "software": SOFTWARE}
    reply = RecordDict({CONFIG: ConfigRecord({**stated, **config})})
    if data is not None:
        reply[BLOCK] = ArrayRecord({DATA: Array("uint8", (len(data),), RAW, data)})
    return reply


def _config(content: RecordDict) -> ConfigRecord:
    record = content.get(CONFIG)
    if not isinstance(record, ConfigRecord):
        raise ProtocolError("The coordinator's message has no config record")
    check_protocol(record, "The coordinator", here="this site")
    return record


def _keep_call(content: RecordDict, exchange: Exchange) -> None:
    """A call of another protocol: the site's agent says in its status that it cannot answer it."""
    record = content.get(CONFIG)
    data = record.get("call") if isinstance(record, ConfigRecord) else None
    if isinstance(data, bytes):
        exchange.put_call(data)


def _value(config: ConfigRecord, key: str, kind: type[V]) -> V:
    value = config.get(key)
    if type(value) is not kind:
        raise ProtocolError(f"The coordinator's message has no {key}, or one of another type")
    return value


def _block(content: RecordDict) -> bytes:
    record = content.get(BLOCK)
    array = record.get(DATA) if isinstance(record, ArrayRecord) else None
    if array is None or array.stype != RAW:
        raise ProtocolError("The coordinator's message has no block of bytes")
    return array.data
