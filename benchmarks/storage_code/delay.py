"""A proxy on 127.0.0.1 that delays every byte: ``delay.py UPSTREAM_PORT PORT ROUND_TRIP_MS``."""

import asyncio
import sys

_HOST = "127.0.0.1"
_BUFFER_BYTES = 4 << 20


class _End(asyncio.Protocol):
    """One end of a connection through the proxy; what it receives its peer sends, later."""

    def __init__(self, delay_s: float, upstream_port: int, peer: "_End | None" = None) -> None:
        self._delay_s = delay_s
        self._upstream_port = upstream_port
        self._peer = peer
        self._early: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._connecting: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(_BUFFER_BYTES)
        if self._peer is None:
            self._connecting = asyncio.create_task(self._connect())

    def data_received(self, data: bytes) -> None:
        if self._peer is None:
            self._early.append(data)
        else:
            asyncio.get_running_loop().call_later(self._delay_s, self._peer.send, data)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's
        if self._peer is not None:
            asyncio.get_running_loop().call_later(self._delay_s, self._peer.close)

    def send(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        _, self._peer = await loop.create_connection(
            lambda: _End(self._delay_s, self._upstream_port, self), _HOST, self._upstream_port
        )
        for data in self._early:
            self.data_received(data)


async def main() -> None:
    """Serve until killed."""
    upstream_port, port, round_trip_ms = map(int, sys.argv[1:])
    server = await asyncio.get_running_loop().create_server(
        lambda: _End(round_trip_ms / 2000, upstream_port), _HOST, port, backlog=1024
    )
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
