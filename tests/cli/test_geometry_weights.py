"""Weights of networks for geometry that are not here: offered in one line, fetched from a stand-in of the hub."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hub_stand_in import Hub, serve

from reconx_pl.cli.geometry_weights import provide_geometry
from reconx_pl.cli.main import main
from reconx_pl.diffusion.weights.releases import GEOMETRY_RELEASES
from reconx_pl.errors import BadWeightsError, MissingWeightsError
from reconx_pl.geometry.da3.pretrained import WEIGHTS
from reconx_pl.geometry.default_estimator import GeometryName
from reconx_pl.pretrained import fetch

PLACE = WEIGHTS["da3-base"]
CONTENT = b"half a gigabyte" * 100


class Terminal(io.StringIO):
    """Somebody who types."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Hub]:
    """The hub, for whoever asks it. One process works in an empty folder, and nobody is at the terminal."""
    for name in ("HF_TOKEN", "HF_ENDPOINT", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    caplog.set_level("INFO")
    digest = hashlib.sha256(CONTENT).hexdigest()
    known = replace(GEOMETRY_RELEASES["da3-base"], bytes=len(CONTENT), sha256_ends=(digest[:8], digest[-4:]))
    monkeypatch.setitem(GEOMETRY_RELEASES, "da3-base", known)
    asked = fetch.fetch_release
    with serve(Hub(CONTENT, path="/depth-anything/DA3-BASE/resolve/main/model.safetensors")) as served:
        monkeypatch.setattr(fetch, "fetch_release", lambda *given: asked(*given, endpoint=served.endpoint))
        yield served


def test_where_nobody_is_at_a_terminal_nothing_is_asked_and_nothing_fetched(
    hub: Hub, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    assert provide_geometry("auto", yes=False) == "colmap"
    assert provide_geometry("da3-base", yes=False) == "da3-base", "which has a refusal of its own"
    assert "[y/N]" not in "".join(capfd.readouterr()) and hub.requests == [] and not PLACE.exists()
    assert "reconx weights fetch da3-base" in caplog.text, "the line in the log that tells how"


@pytest.mark.parametrize(
    ("answer", "found"), [("y\n", "da3-base"), ("n\n", "colmap"), ("\n", "colmap"), ("", "colmap")]
)
def test_somebody_at_a_terminal_is_asked_once_with_size_and_licence(
    answer: str, found: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    assert provide_geometry("auto", yes=False) == found
    assert PLACE.exists() == (found == "da3-base")
    said = " ".join("".join(capfd.readouterr()).split())
    assert said.count("[y/N]") == 1
    for part in ("da3-base", "0.54 GB", "Apache-2.0", "Without it structure from motion"):
        assert part in said, part


def test_with_yes_nobody_is_asked_and_what_is_here_is_not_fetched(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal("n\n"))
    assert provide_geometry("auto", yes=True) == "da3-base" and PLACE.read_bytes() == CONTENT
    assert "[y/N]" not in "".join(capfd.readouterr())
    hub.requests.clear()
    names: tuple[GeometryName, ...] = ("auto", "da3-base", "colmap")
    assert [provide_geometry(name, yes=True) for name in names] == ["da3-base", "da3-base", "colmap"]
    assert hub.requests == []


@pytest.mark.parametrize("failure", ["no internet", "another file"])
def test_an_offer_that_fails_does_not_lose_the_run_and_what_was_named_does(
    failure: str, hub: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if failure == "no internet":
        hub.status = 503
    else:
        hub.content = b"something else"
    assert provide_geometry("auto", yes=True) == "colmap"
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(said) == 1 and "only an offer" in said[0] and "depth-anything/DA3-BASE" in said[0]
    with pytest.raises((MissingWeightsError, BadWeightsError), match="depth-anything/DA3-BASE"):
        provide_geometry("da3-base", yes=True)
    assert not PLACE.exists()


def test_several_processes_do_not_fetch_into_one_file(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    assert provide_geometry("auto", yes=False) == "colmap", "nobody answers for all of them"
    assert provide_geometry("auto", yes=True) == "colmap"
    with pytest.raises(MissingWeightsError, match="fetch it once before, `reconx weights fetch da3-base`"):
        provide_geometry("da3-base", yes=True)
    assert hub.requests == []


@pytest.mark.parametrize("command", [["reconstruct", "-o", "out", "--no-diffusion"], ["generate", "-o", "out.mp4"]])
def test_both_commands_fetch_with_yes_what_auto_takes(command: list[str], hub: Hub, tmp_path: Path) -> None:
    """The stand-in's file is no network, which the command finds out after it has fetched it."""
    (tmp_path / "a.png").write_bytes(b"not read before the network")
    with pytest.raises(SystemExit, match="da3_base.safetensors"):
        main([command[0], "a.png", *command[1:], "--yes"])
    assert PLACE.read_bytes() == CONTENT
    hub.requests.clear()
    PLACE.unlink()
    own = ["--geometry_from", "a.npz"]
    with pytest.raises(SystemExit, match="a.npz: no such file"):
        main([command[0], "a.png", *command[1:], *own, "--yes"])
    assert hub.requests == [], "who brings geometry needs no weights"
