"""The server of the live page: on 127.0.0.1 only, and only for who knows the token."""

from __future__ import annotations

import base64
import hmac
import json
import math
import secrets
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import cv2
import numpy as np
from numpy.typing import NDArray

from caffetools.errors import CaffeToolsError, DataError
from caffetools.visualize.live_model import LiveModel, View
from caffetools.visualize.page import render_template

HOST = "127.0.0.1"
_MOST_BYTES = 16 << 20  # of a frame
_POLICY = "default-src 'none'; img-src 'self' data: blob:; media-src 'self' blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"


class LiveServer(ThreadingHTTPServer):
    """Serves one live model.

    Args:
        model: What is shown.
        port: 0 takes a free one.
        token: None draws one.

    Attributes:
        url: The address to open, with the token.
    """

    daemon_threads = True

    def __init__(self, model: LiveModel, *, port: int = 0, token: str | None = None):
        self.model = model
        self._computing = 0
        self._ended = False
        self._change = threading.Condition()
        super().__init__((HOST, port), _Handler)  # it calls server_close where the port is taken
        self.token = token or secrets.token_urlsafe(24)
        self.facts = model.describe()

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Hold off the server's end while a request runs the net. Raises :class:`DataError` where the server has ended."""
        with self._change:
            if self._ended:
                raise DataError("the server has ended")
            self._computing += 1
        try:
            yield
        finally:
            with self._change:
                self._computing -= 1
                self._change.notify_all()

    def server_close(self) -> None:
        """Close the port, stop what takes long, and wait for the requests that run the net.

        An interpreter that ends while another thread is inside a native kernel aborts the process.
        """
        super().server_close()
        self.model.cancel.cancel()
        with self._change:
            self._ended = True
            self._change.wait_for(lambda: self._computing == 0)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore that a page was closed in the middle of a request; show other errors."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        """The page's address."""
        return f"http://{HOST}:{self.server_address[1]}/?token={self.token}"


class _Handler(BaseHTTPRequestHandler):
    server: LiveServer
    protocol_version = "HTTP/1.1"
    # Headers and body are written one after the other: without this the body waits 40 ms for the browser's delayed ACK.
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        try:
            length = int(self.headers.get("Content-Length", "0"))
        except ValueError:
            length = -1
        if not 0 <= length <= _MOST_BYTES:
            self.close_connection = True
            self._send(413, {"error": f"a frame has at most {_MOST_BYTES >> 20} MB"})
            return
        self._answer(self.rfile.read(length))

    def log_message(self, format: str, *args: object) -> None:
        """Requests are not logged: a page asks many times a second."""

    def _answer(self, body: bytes) -> None:
        address = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(address.query).items()}
        # A page of another site could reach this port by a name of its own that resolves to 127.0.0.1.
        host = (self.headers.get("Host") or "").rsplit(":", 1)[0]
        given = self.headers.get("X-Token") or query.get("token", "")
        if host not in (HOST, "localhost") or not hmac.compare_digest(given.encode(), self.server.token.encode()):
            self._send(403, {"error": "open the address that the command printed, with its token"})
            return
        try:
            if address.path == "/":
                page = render_template("live.html.jinja", facts=self.server.facts, token=self.server.token)
                self._write(200, page.encode(), "text/html; charset=utf-8")
                return
            if address.path == "/api/picture":
                name, data = self.server.model.picture(int(query["index"]))
                self._write(200, data, "application/octet-stream", {"X-Name": quote(name)})
                return
            if address.path == "/api/quit" and self.command == "POST":
                self._send(200, {})
                # From this thread, which is one of the server's own, it would wait for itself.
                threading.Thread(target=self.server.shutdown).start()
                return
            with self.server.computing():
                answer = self._call(address.path, query, body)
            self._send(200, answer)
        except CaffeToolsError as error:
            self._send(400, {"error": str(error)})
        except (KeyError, ValueError) as error:
            self._send(400, {"error": f"bad request: {error}"})

    def _call(self, path: str, query: dict[str, str], body: bytes) -> dict[str, Any]:
        model = self.server.model
        if path == "/api/run":
            answer = model.follow(int(query["seen"]) if "seen" in query else None)
            filters = model.filters() if answer["changed"] else None
            return {**answer, "filters": _uri(filters) if filters is not None else None}
        blob, unit = query["blob"], int(query["unit"])
        known = next((item for item in self.server.facts["blobs"] if item["name"] == blob), None)
        if known is None or not 0 <= unit < known["units"]:
            raise DataError(f"the net has no unit {unit} of a blob '{blob}'")
        if path == "/api/frame":
            frame = model.frame(body, blob, unit, _view(query), page=query.get("page", ""))
            return {
                "sheet": _uri(frame.sheet, "jpg"),
                "columns": frame.columns,
                "rows": frame.rows,
                "side": frame.side,
                "unit": _uri(frame.unit),
                "value": _finite(frame.value),
                "predictions": [(name, _finite(share)) for name, share in frame.predictions],
            }
        if path == "/api/explain":
            found = model.explain(query["method"], blob, unit, colour=query.get("colour") == "1", page=query.get("page", ""))
            return {"image": _uri(found)}
        if path == "/api/top":
            return {"images": [_uri(crop) for crop in model.top(blob, unit)]}
        if path == "/api/synthesize":
            return {"image": _uri(model.synthesize(blob, unit))}
        raise DataError(f"unknown address {path}")

    def _send(self, code: int, answer: dict[str, Any]) -> None:
        self._write(code, json.dumps(answer, allow_nan=False, default=_number).encode(), "application/json")

    def _write(self, code: int, data: bytes, kind: str, more: Mapping[str, str] = MappingProxyType({})) -> None:
        self.send_response(code)
        for name, value in (
            *more.items(),
            ("Content-Type", kind),
            ("Content-Length", str(len(data))),
            ("Cache-Control", "no-store"),
            ("Content-Security-Policy", _POLICY),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
            ("X-Frame-Options", "DENY"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


def _view(query: Mapping[str, str]) -> View:
    """Return how the channels are to be shown. Raises :class:`ValueError` for what is not a number."""
    gamma = float(query.get("gamma", "1"))
    if not 0.05 <= gamma <= 20:
        raise ValueError(f"gamma {gamma} is not from 0.05 to 20")
    method = query.get("back", "")
    return View(gamma, query.get("common") == "1", (method, query["from"], int(query["of"])) if method else None)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _number(value: object) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _uri(pixels: NDArray[np.uint8], kind: str = "png") -> str:
    options = [cv2.IMWRITE_JPEG_QUALITY, 85] if kind == "jpg" else [cv2.IMWRITE_PNG_COMPRESSION, 1]
    _, data = cv2.imencode(f".{kind}", np.ascontiguousarray(pixels[..., ::-1]), options)
    return f"data:image/{'jpeg' if kind == 'jpg' else 'png'};base64,{base64.b64encode(data.tobytes()).decode('ascii')}"
