"""What somebody would do without a federation: send the file to a web server by HTTPS."""

from __future__ import annotations

import http.server
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from coordinator.certificates import make_ca_and_server

_PIECE = 1 << 20


class _Sink(http.server.BaseHTTPRequestHandler):
    """Writes the body of a PUT to a file."""

    target: Path

    def do_PUT(self) -> None:
        left = int(self.headers["Content-Length"])
        with self.target.open("wb") as out:
            while left:
                piece = self.rfile.read(min(_PIECE, left))
                out.write(piece)
                left -= len(piece)
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


def upload_seconds(folder: Path, size: int) -> float:
    """Seconds that one HTTPS upload of so many bytes takes on this machine, to a file on the same disk."""
    files = make_ca_and_server(folder / "upload-tls", ["localhost"])
    handler = type("Sink", (_Sink,), {"target": folder / "uploaded"})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.server, files.server_key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()

    def pieces() -> Iterator[bytes]:
        piece, left = bytes(_PIECE), size
        while left:
            yield piece[:left]
            left -= min(left, _PIECE)

    try:
        begin = time.monotonic()
        url = f"https://localhost:{server.server_port}/file"
        trust = ssl.create_default_context(cafile=files.ca)
        with httpx.Client(verify=trust, trust_env=False, timeout=600) as client:
            done = client.put(url, content=pieces(), headers={"Content-Length": str(size)})
        assert done.status_code == 204
        return time.monotonic() - begin
    finally:
        server.shutdown()
        server.server_close()
        (folder / "uploaded").unlink(missing_ok=True)
