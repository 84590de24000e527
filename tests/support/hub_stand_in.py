"""A stand-in for the Hugging Face hub on this machine.

HEAD and GET of one file, with ranges and failures; and repositories that are made, and get files in commits: small ones
in the commit itself, weights before it by their SHA-256 (git LFS, as the library does without its own Xet protocol).
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Repository:
    """What was pushed.

    Args:
        private: seen by its owner only.
        files: branch, then name and content.
        messages: of the commits.
    """

    private: bool
    files: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    messages: list[str] = field(default_factory=list)


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
        repositories: by name.
        stored: large files that were uploaded, by their SHA-256.
        writers: authorization headers that may write; everybody may, where it is None.
        refuse_uploads: of how many large files the next ones are refused.
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
    repositories: dict[str, Repository] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)
    writers: set[str] | None = None
    refuse_uploads: int = 0

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

        def _body(self) -> bytes:
            if self.headers["Transfer-Encoding"] != "chunked":
                return self.rfile.read(int(self.headers["Content-Length"] or 0))
            content = b""
            while size := int(self.rfile.readline(), 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return content

        def _answer(self, status: int, content: object = None, **headers: str) -> None:
            body = json.dumps({} if content is None else content).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_PUT(self) -> None:
            content = self._body()
            hub.requests.append(("PUT", None))
            if hub.refuse_uploads:
                hub.refuse_uploads -= 1
                self._answer(403)
                return
            hub.stored[self.path.removeprefix("/upload/")] = content
            self._answer(200)

        def do_POST(self) -> None:
            body = self._body()
            hub.requests.append((f"POST {self.path}", None))
            if hub.writers is not None and self.headers["Authorization"] not in hub.writers:
                self._answer(403)
                return
            self._answer(*_posted(hub, self.path, body))

        def do_GET(self) -> None:
            name = self.path.split("?")[0].removeprefix("/api/models/")
            if name in hub.repositories:
                self._answer(200, {"id": name, "private": hub.repositories[name].private, "sha": "b" * 40})
                return
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


def _posted(hub: Hub, path: str, body: bytes) -> tuple[int, object]:
    """Status and content of the answer to a POST."""
    if path == "/api/validate-yaml":
        return 200, {"errors": [], "warnings": []}
    if path == "/api/repos/create":
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        known = name in hub.repositories
        # "visibility" since huggingface_hub 1, "private" before
        private = asked.get("visibility") == "private" or asked.get("private") is True
        hub.repositories.setdefault(name, Repository(private))
        return (409 if known else 200), {"url": f"{hub.endpoint}/{name}"}
    if path.endswith(".git/info/lfs/objects/batch"):
        return 200, {"transfer": "basic", "objects": [_upload_of(hub, each) for each in json.loads(body)["objects"]]}
    owner, name, what, branch = path.removeprefix("/api/models/").split("/")
    repository = hub.repositories[f"{owner}/{name}"]
    if what == "branch":
        repository.files.setdefault(branch, {})
        return 200, {}
    if what == "preupload":
        asked = [file["path"] for file in json.loads(body)["files"]]
        large = {file for file in asked if file.endswith(".safetensors")}
        modes = {file: "lfs" if file in large else "regular" for file in asked}
        return 200, {"files": [{"path": file, "uploadMode": modes[file], "shouldIgnore": False} for file in asked]}
    assert what == "commit"
    files = repository.files[branch]
    for line in map(json.loads, body.splitlines()):
        value = line["value"]
        if line["key"] == "header":
            repository.messages.append(value["summary"])
        elif line["key"] == "lfsFile":
            files[value["path"]] = hub.stored[value["oid"]]
        else:
            files[value["path"]] = base64.b64decode(value["content"])
    return 200, {"commitUrl": f"{hub.endpoint}/{owner}/{name}/commit/{'c' * 40}", "commitOid": "c" * 40}


def _upload_of(hub: Hub, asked: dict) -> dict:
    """Where to put a large file; nowhere if it is here."""
    if asked["oid"] in hub.stored:
        return asked
    return asked | {"actions": {"upload": {"href": f"{hub.endpoint}/upload/{asked['oid']}"}}}
