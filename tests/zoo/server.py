"""A local HTTP server that serves one file, well or badly, for the tests of fetching."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Server:
    """How the server behaves; tests change it between requests.

    Attributes:
        content: the file's bytes. length: whether to send theirs; promised: another one. etag: sent where not empty.
        ranges: whether Range is understood.
        drop_after: for each coming request, after how many bytes of the body the connection closes; None for not at all.
        answers: for each coming request, a status to answer with in place of the file; None for the file.
        hold: the body's second half waits for this event.
    """

    content: bytes
    ranges: bool = True
    etag: str = '"one"'
    length: bool = True
    promised: int | None = None
    drop_after: list[int | None] = field(default_factory=list)
    answers: list[int | None] = field(default_factory=list)
    location: str = ""
    hold: threading.Event | None = None
    seen: list[dict[str, str]] = field(default_factory=list)
    url: str = ""


class Handler(BaseHTTPRequestHandler):
    state: Server

    def do_GET(self) -> None:
        self.state.seen.append({"path": self.path, **{k.lower(): v for k, v in self.headers.items()}})
        status = self.state.answers.pop(0) if self.state.answers else None
        if status is not None:
            self._respond(status, {"Location": self.state.location} if self.state.location else {})
            return
        start, total = self._start(), len(self.state.content)
        if start and start >= total:
            self._respond(416, {"Content-Range": f"bytes */{total}"})
            return
        headers = {"Content-Range": f"bytes {start}-{total - 1}/{total}"} if start else {}
        if self.state.etag:
            headers["ETag"] = self.state.etag
        headers["Content-Length"] = str(self.state.promised or total - start) if self.state.length else ""
        self._respond(206 if start else 200, headers)
        self._send_body(start)

    def _start(self) -> int:
        asked = self.headers.get("Range")
        fresh = self.headers.get("If-Range") in (None, self.state.etag)
        return int(asked.removeprefix("bytes=").split("-")[0]) if asked and self.state.ranges and fresh else 0

    def _respond(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": "0", **headers}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()

    def _send_body(self, start: int) -> None:
        limit = self.state.drop_after.pop(0) if self.state.drop_after else None
        body = self.state.content[start:] if limit is None else self.state.content[start : start + limit]
        half = len(body) // 2
        self.wfile.write(body[:half])
        if self.state.hold is not None:
            self.wfile.flush()
            self.state.hold.wait(20)
        self.wfile.write(body[half:])
        self.close_connection = True

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def serving(content: bytes, **behaviour: Any) -> Iterator[Server]:
    """Serve ``content`` at every path of ``server.url`` while inside."""
    state = Server(content, **behaviour)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"state": state}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def unused_address() -> str:
    """An address at which nothing listens."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    port = server.server_port
    server.server_close()
    return f"http://127.0.0.1:{port}"
