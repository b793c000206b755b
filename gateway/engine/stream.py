"""The hot path: events read off a WebSocket and answered, and what is written to it, within one turn of the loop."""

from __future__ import annotations

import asyncio
import os
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

import structlog

from gateway.engine.sending import join_text_frame, send_each, send_own

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from gateway.engine.batch import Batch

    Asked = bytes | Coroutine[Any, Any, bytes]
    Told = Coroutine[Any, Any, object] | None

_log = structlog.get_logger(__name__)

WRITE_AT: Final = 65_536
"""Bytes that one connection is sent in one turn of the loop, after which they are written before the turn's end."""

COUNTED_BY: Final = 32
"""Events that are counted at a time: to look at the clock for each would cost as much as to find its handler."""

_MAX_ACK_DIGITS: Final = 15
_ZERO: Final = 0x30
_NINE: Final = 0x39
_BRACKET: Final = 0x5B
"""What an event's number is made of, and what follows it, byte by byte: compiled, no method of `bytes` is as fast."""

_NOT_WRITTEN_TO: Final = "a connection could not be written to"

_write: Final = os.write
_join_text_frame: Final = join_text_frame


class Sink(Protocol):
    """What sends events to one client."""

    def write(self, batch: Batch) -> None:
        """Send events that were encoded once for all who hear of them."""


class Route:
    """Where the events of a namespace go.

    Args:
        namespace: its name.
        event: how an event of it begins, as Engine.IO carries it.
        acknowledgement: how an acknowledgement begins.
        ask: answers a client's event, a JSON array of its name and its arguments; the answer is JSON. Raises ValueError
            for what is no event.
        tell: takes an event that awaits no answer.
    """

    def __init__(
        self,
        namespace: str,
        event: bytes,
        acknowledgement: bytes,
        ask: Callable[[Any, bytes], Asked],
        tell: Callable[[Any, bytes], Told],
    ) -> None:
        self.namespace = namespace
        self.event = event
        self.acknowledgement = acknowledgement
        self.ask = ask
        self.tell = tell


class Receiver:
    """A namespace that a client has joined.

    Args:
        route: where its events go.
        client: what `Route.ask` and `Route.tell` know the client by.
    """

    def __init__(self, route: Route, client: Any) -> None:
        self.route = route
        self.client = client


class Owner(Protocol):
    """The connection that a stream is part of."""

    def is_over_rate(self, events: int) -> bool:
        """Count so many events, and say whether they are too many."""

    def on_other(self, transport: Any, data: bytes, frame: Any, *, reserved: bool) -> None:
        """Take a frame that is no event which can be served now."""

    def on_overflow(self) -> None:
        """More waits for the client than may."""

    def serve_later(self, waiting: Coroutine[Any, Any, object]) -> None:
        """Serve something that takes its time, before what comes meanwhile."""


class Outbox:
    """Connections that were sent something in this turn of the loop, and are written to at its end.

    A node with much to do reads many requests in one turn. Written one after the other, their answers cost the
    operating system half of what they cost in between the reads, and several answers to one client are one write.
    """

    def __init__(self) -> None:
        self.wires: dict[Any, None] = {}
        """picows's transports of all connections that there are, whether they can still be written to or not. Of many
        connections, a set takes twice as much."""
        self._waiting: list[Stream] = []

    def cut_off(self) -> None:
        """End every connection that has not ended yet, at once."""
        for wire in list(self.wires):
            wire.disconnect(False)

    def add(self, stream: Stream) -> None:
        """Write to a connection at the end of this turn."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self.write_all)
        self._waiting.append(stream)

    def write_all(self) -> None:
        """Write to all that wait, without a step between one and the next of those whose socket is free."""
        waiting = self._waiting
        self._waiting = []
        if len(waiting) == 1:  # as where little goes on: what follows costs more than it saves
            _write_by(waiting[0].flush)
            return
        ready: list[Stream] = []
        files: list[int] = []
        frames: list[bytes] = []
        others: list[Callable[[], None]] = []
        for stream in waiting:
            try:
                if not stream.is_free():
                    others.append(stream.flush)
                elif sent_to := stream.take():
                    ready.append(stream)
                    files.append(stream.file)
                    frames.append(sent_to)
            except Exception:  # which is no reason for the others to hear nothing
                _log.exception(_NOT_WRITTEN_TO)
        for place, sent in send_own(files, frames):
            others.append(partial(ready[place].send_rest, frames[place], sent))
        # What may end a connection, and give its file to another, comes last.
        for write in others:
            _write_by(write)


def _write_by(write: Callable[[], None]) -> None:
    try:
        write()
    except Exception:
        _log.exception(_NOT_WRITTEN_TO)


class Stream:
    """One client's WebSocket, past python-socketio's packets.

    Args:
        owner: the connection.
        outbox: what has it written to at the end of each turn.
        transport: the loop's.
        file: what the connection is to the operating system; -1 where that is no file, or what is sent has to be
            encrypted before.
        receivers: where its events go, by how they begin.
        max_buffer: bytes that may wait for a client that does not read.
    """

    __deletable__ = ("_owner",)

    def __init__(
        self,
        owner: Owner,
        outbox: Outbox,
        transport: asyncio.Transport,
        *,
        file: int,
        receivers: list[Receiver],
        max_buffer: int,
    ) -> None:
        self.mute = False
        """True once nothing may be sent any more, but perhaps the close frame."""
        self.busy = False
        """Whether what came before is still being served."""
        self.in_parts = False
        """Whether a message has begun that comes in more than one frame."""
        self.awaits_bytes = False
        """Whether attachments of the packet that came last are still to come."""
        self.receivers = receivers
        self._owner = owner
        self._outbox = outbox
        self._transport = transport
        self.file = file
        self._max_buffer = max_buffer
        self._events = 0
        self._out: list[bytes] = []
        """What was sent in this turn of the loop."""
        self._out_bytes = 0

    def end(self) -> None:
        """The connection is gone: nothing comes any more, nor may be sent, and no cycle is left of it."""
        self.mute = True
        del self._owner

    # What comes

    def on_frame(self, transport: Any, frame: Any) -> None:
        """Take one frame of picows's.

        What begins as an event is one, whatever the frame says of its type: asking picows for that takes longer
        than all that is asked here. It is none while bytes are awaited.
        """
        data: bytes = frame.get_payload_as_bytes()
        reserved = bool(frame.rsv1 or frame.rsv2 or frame.rsv3)
        if reserved or self.in_parts or not frame.fin or not self._serve_event(data):
            self._owner.on_other(transport, data, frame, reserved=reserved)

    def _serve_event(self, data: bytes) -> bool:
        """Serve a message, if it is an event that can be served now.

        Returns:
            Whether it was; one that has something wrong with it is not.
        """
        if self.busy or self.mute or self.awaits_bytes:
            return False
        for receiver in self.receivers:
            if data.startswith(receiver.route.event):
                return self._serve(receiver.route, receiver.client, data)
        return False

    def _serve(self, route: Route, client: Any, data: bytes) -> bool:
        begin = start = len(route.event)
        end = min(len(data), begin + _MAX_ACK_DIGITS + 1)
        while start < end and _ZERO <= data[start] <= _NINE:
            start += 1
        if start == end or data[start] != _BRACKET:
            return False
        number = data[begin:start]
        self._events += 1
        if self._events >= COUNTED_BY:
            self._events = 0
            if self._owner.is_over_rate(COUNTED_BY):
                return False  # the stock path closes the connection
        try:
            if number:
                answer = route.ask(client, data[start:])
                if isinstance(answer, bytes):
                    self._acknowledge(route, number, answer)
                else:
                    self._owner.serve_later(self._acknowledge_later(route, number, answer))
            elif (told := route.tell(client, data[start:])) is not None:
                self._owner.serve_later(told)
        except ValueError:
            return False
        return True

    async def _acknowledge_later(self, route: Route, number: bytes, answer: Coroutine[Any, Any, bytes]) -> None:
        self._acknowledge(route, number, await answer)

    def _acknowledge(self, route: Route, number: bytes, answer: bytes) -> None:
        self.send(_join_text_frame(route.acknowledgement, number, b"[", answer, b"]"))

    # What is sent

    def send(self, frame: bytes) -> None:
        """Send a frame at the end of this turn of the loop, with all else that is sent in it."""
        if self.mute:
            return
        if not self._out:
            self._outbox.add(self)
        self._out.append(frame)
        self._out_bytes += len(frame)
        if self._out_bytes > WRITE_AT:
            self.flush()

    def write(self, batch: Batch) -> None:
        """Send events that were encoded once for all who hear of them."""
        if self._out:  # to come after it
            self.send(batch.frames)
        elif not self.mute:
            self._write(batch.frames)

    def takes_at_once(self) -> bool:
        """Whether what is sent now may go to the operating system past everything."""
        return not self._out and self.is_free()

    def is_free(self) -> bool:
        """Whether nothing waits for the socket, and it may be written to."""
        transport = self._transport
        return not (self.mute or self.file < 0 or transport.is_closing() or transport.get_write_buffer_size())

    def send_rest(self, frames: bytes, sent: int) -> None:
        """Leave to the loop what the operating system did not take; -1 where it took nothing because it is gone."""
        if sent >= 0:
            self._transport.write(frames[sent:])

    def take(self) -> bytes:
        """Take what was sent in this turn of the loop, to write it; empty where it has been written already."""
        frames = self._out[0] if len(self._out) == 1 else b"".join(self._out)
        self._out.clear()
        self._out_bytes = 0
        return frames

    def flush(self) -> None:
        """Write what was sent in this turn of the loop."""
        frames = self.take()
        if frames and not self.mute:
            self._write(frames)

    def _write(self, frames: bytes) -> None:
        """Hand bytes to the operating system, where nothing waits before them.

        Through the loop they cost half as much again (`benchmarks/profile.md`).
        """
        transport = self._transport
        if transport.is_closing():  # and has perhaps given its file back already, to somebody else's connection
            return
        waiting = transport.get_write_buffer_size()
        if waiting:
            if waiting + len(frames) > self._max_buffer:  # before it is held: the bound is one
                self._owner.on_overflow()
                return
        elif self.file >= 0:
            sent = 0
            try:
                sent = _write(self.file, frames)
            except BlockingIOError:
                pass
            except OSError:
                return  # gone; the loop is about to find out
            if sent == len(frames):
                return
            frames = frames[sent:]
        transport.write(frames)


def write_all(batch: Batch, sinks: Sequence[Sink]) -> None:
    """Send a batch to many clients: what each one's `write` does, without a step between one and the next."""
    frames = batch.frames
    ready: list[Stream] = []
    files: list[int] = []
    for sink in sinks:
        if isinstance(sink, Stream) and sink.takes_at_once():
            ready.append(sink)
            files.append(sink.file)
        else:
            sink.write(batch)
    for place, sent in send_each(files, frames):
        ready[place].send_rest(frames, sent)
