"""Fetching index files: from a server on this machine, whole and verified, or not at all."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from reconx_pl.errors import BadDataError
from reconx_pl.evaluation.protocols.fetch import fetch_indices, index_folder
from reconx_pl.evaluation.protocols.protocol import IndexFile

CONTENT = b'{"scene": {"context": [0, 4], "target": [2]}}'
OFFLINE = "http://127.0.0.1:9/assets/index.json"  # the discard port: nobody listens


class Server:
    """Serves files by name; ``promised`` says another length than is sent."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.promised: int | None = None
        self.asked: list[str] = []
        self.address = ""


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.asked.append(self.path)
            content = state.files.get(self.path)
            if content is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(state.promised or len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.address = f"http://127.0.0.1:{http.server_address[1]}"
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield state
    http.shutdown()
    http.server_close()


def index(file: str = "ours.json", url: str = OFFLINE, content: bytes = CONTENT) -> IndexFile:
    return IndexFile(file, hashlib.sha256(content).hexdigest(), url, expected=1)


def test_fetches_from_the_publisher_and_once(tmp_path: Path, server: Server) -> None:
    server.files["/assets/theirs.json"] = CONTENT
    wanted = index(url=f"{server.address}/assets/theirs.json")
    assert fetch_indices([wanted, wanted], tmp_path / "new/folder") == {"ours.json": "fetched"}
    assert (tmp_path / "new/folder/ours.json").read_bytes() == CONTENT
    assert fetch_indices([wanted], tmp_path / "new/folder") == {"ours.json": "was there"}
    assert server.asked == ["/assets/theirs.json"]


def test_a_mirror_has_them_under_our_names(tmp_path: Path, server: Server) -> None:
    server.files["/mirror/ours.json"] = CONTENT
    assert fetch_indices([index()], tmp_path, f"{server.address}/mirror/") == {"ours.json": "fetched"}
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror/ours.json").write_bytes(CONTENT)
    assert fetch_indices([index()], tmp_path / "b", f"file://{tmp_path / 'mirror'}") == {"ours.json": "fetched"}


def test_other_bytes_are_not_written_and_a_damaged_file_is_replaced(tmp_path: Path, server: Server) -> None:
    server.files["/ours.json"] = b"[]"
    (tmp_path / "ours.json").write_bytes(b"damaged")
    with pytest.raises(BadDataError, match="nothing was written") as raised:
        fetch_indices([index()], tmp_path, server.address)
    assert hashlib.sha256(b"[]").hexdigest() in str(raised.value)
    assert [file.name for file in tmp_path.iterdir()] == ["ours.json"]
    server.files["/ours.json"] = CONTENT
    assert fetch_indices([index()], tmp_path, server.address) == {"ours.json": "fetched"}
    assert (tmp_path / "ours.json").read_bytes() == CONTENT


def test_a_transfer_that_breaks_off_leaves_nothing(tmp_path: Path, server: Server) -> None:
    server.files["/ours.json"] = CONTENT[:20]
    server.promised = len(CONTENT)
    with pytest.raises(BadDataError, match=f"broke off at 20 of {len(CONTENT)} bytes"):
        fetch_indices([index()], tmp_path, server.address)
    assert list(tmp_path.iterdir()) == []


def test_offline_says_what_to_do_and_the_others_are_fetched(tmp_path: Path, server: Server) -> None:
    server.files["/b.json"] = CONTENT
    with pytest.raises(BadDataError) as raised:
        fetch_indices([index("a.json"), index("b.json", f"{server.address}/b.json"), index("c.json")], tmp_path)
    message, checksum = str(raised.value), hashlib.sha256(CONTENT).hexdigest()
    for name in ("a.json", "c.json"):
        assert f"save {OFFLINE} as {tmp_path / name}, sha256 {checksum}" in message
    assert "b.json" not in message and (tmp_path / "b.json").read_bytes() == CONTENT
    with pytest.raises(BadDataError, match=r"404|Not Found"):
        fetch_indices([index()], tmp_path, server.address)
    with pytest.raises(BadDataError, match="cannot be reached"):
        fetch_indices([index()], tmp_path, "no address")


def test_a_file_put_there_by_hand_counts(tmp_path: Path) -> None:
    (tmp_path / "ours.json").write_bytes(CONTENT)
    assert fetch_indices([index()], tmp_path) == {"ours.json": "was there"}


def test_where_indices_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RECONX_INDICES", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert index_folder() == tmp_path / "reconx_pl/indices"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert index_folder() == Path.home() / ".cache/reconx_pl/indices"
    monkeypatch.setenv("RECONX_INDICES", str(tmp_path / "mine"))
    assert index_folder() == tmp_path / "mine" and index_folder(tmp_path) == tmp_path
