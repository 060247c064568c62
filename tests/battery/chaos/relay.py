"""A line that can be made slow: `python -m tests.battery.chaos.relay LISTEN PORT TARGET PORT RATE_FILE`.

The file holds bytes a second for each direction, read while bytes pass; 0 or no file: as fast as it goes.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

_CHUNK = 1024


class Line:
    """One direction of all connections together, as a real line has it."""

    def __init__(self, file: Path) -> None:
        self._file, self._free = file, 0.0

    async def pass_on(self, size: int) -> None:
        """Wait for as long as so many bytes take."""
        try:
            rate = float(self._file.read_text())
        except (OSError, ValueError):
            rate = 0.0
        if rate > 0:
            now = time.monotonic()
            self._free = max(self._free, now) + size / rate
            await asyncio.sleep(self._free - now)


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter, line: Line) -> None:
    try:
        while data := await source.read(_CHUNK):
            await line.pass_on(len(data))
            target.write(data)
            await target.drain()
    except OSError:
        pass
    finally:
        target.close()


async def serve(listen: tuple[str, int], target: tuple[str, int], file: Path) -> None:
    """Until the process is ended."""
    up, down = Line(file), Line(file)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(*target)
        except OSError:
            writer.close()
            return
        await asyncio.gather(_pump(reader, far_writer, up), _pump(far_reader, writer, down))

    server = await asyncio.start_server(connected, *listen)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    host, port, far, far_port, rates = sys.argv[1:]
    asyncio.run(serve((host, int(port)), (far, int(far_port)), Path(rates)))
