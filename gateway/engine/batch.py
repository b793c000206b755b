"""Events that go out to many: encoded once, whatever their recipients' transports."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engineio import packet

from gateway.engine.frames import text_frame

if TYPE_CHECKING:
    from collections.abc import Sequence


class Batch:
    """Events of one namespace, encoded once for all who are sent them, whatever their transport.

    Args:
        texts: Socket.IO packets, or what another protocol has in their place.
        prefix: what a WebSocket frame begins with before each; Engine.IO's mark of a message.
    """

    def __init__(self, texts: Sequence[bytes], prefix: bytes = b"4") -> None:
        self.texts = texts
        self._prefix = prefix
        self._frames: bytes | None = None
        self._packets: list[packet.Packet] | None = None

    @property
    def frames(self) -> bytes:
        """WebSocket frames, one after the other, as they are written."""
        if self._frames is None:
            self._frames = b"".join([text_frame(self._prefix + text) for text in self.texts])
        return self._frames

    @property
    def packets(self) -> Sequence[packet.Packet]:
        """Engine.IO packets."""
        if self._packets is None:
            self._packets = [packet.Packet(packet.MESSAGE, text.decode()) for text in self.texts]
        return self._packets
