"""A stand-in for the Hugging Face hub on this machine: HEAD and GET of one file, with ranges and failures."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Hub:
    """What the hub serves, how it fails, and what it was asked.

    Args:
        content: the file.
        path: of the file; everything else is not there.
        sha256: stated as the file's etag; None states that of ``content``.
        cut_after: bytes after which the next GETs break off, one number for each.
        status: of every answer, where it is not 200.
        gated: name the reason of a refusal as the hub does.
        requests: method, Range header and authorization of every request.
        sent: bytes of content that were sent.
    """

    content: bytes
    path: str = "/owner/name/resolve/main/model.ckpt"
    sha256: str | None = None
    cut_after: list[int] = field(default_factory=list)
    status: int = 200
    gated: bool = False
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    authorization: list[str | None] = field(default_factory=list)
    location: str | None = None
    sent: int = 0
    endpoint: str = ""

    @property
    def etag(self) -> str:
        return self.sha256 if self.sha256 is not None else hashlib.sha256(self.content).hexdigest()

    def gets(self) -> list[str | None]:
        return [range_ for method, range_ in self.requests if method == "GET"]


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Serve ``hub`` at ``hub.endpoint`` from a thread."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def _head(self) -> bool:
            hub.requests.append((self.command, self.headers["Range"]))
            hub.authorization.append(self.headers["Authorization"])
            if hub.status == 200 and self.path in (hub.path, "/store"):
                return True
            self.send_response(hub.status if hub.status != 200 else 404)
            code = "GatedRepo" if hub.gated else "EntryNotFound" if hub.status == 200 else None
            if code:
                self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return False

        def do_HEAD(self) -> None:
            if self._head():
                self.send_response(302 if hub.location else 200)
                self.send_header("X-Repo-Commit", "a" * 40)
                self.send_header("ETag", '"of-the-pointer"')
                self.send_header("X-Linked-Etag", f'"{hub.etag}"')
                self.send_header("X-Linked-Size", str(len(hub.content)))
                if hub.location:
                    self.send_header("Location", hub.location)
                self.send_header("Content-Length", "0" if hub.location else str(len(hub.content)))
                self.end_headers()

        def do_GET(self) -> None:
            if not self._head():
                return
            asked = self.headers["Range"]
            start = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
            body = hub.content[start:]
            self.send_response(206 if asked else 200)
            if asked:
                self.send_header("Content-Range", f"bytes {start}-{len(hub.content) - 1}/{len(hub.content)}")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if hub.cut_after:
                body = body[: hub.cut_after.pop(0)]
                self.close_connection = True
            hub.sent += len(body)  # before the client, who may be done first, looks at it
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
