"""Weights of a release that are not here: said, asked for once, fetched from a stand-in of the hub."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_stand_in import Hub, serve

from reconx_pl.cli.evaluate_command import evaluate_main
from reconx_pl.cli.model_weights import provide_model
from reconx_pl.errors import ConfigurationError, MissingWeightsError
from reconx_pl.pretrained import fetch
from reconx_pl.training.models import find_model

NAME = "viewcrafter-25-sparse"
PLACE = Path("weights") / "viewcrafter_25_sparse.ckpt"
CONTENT = b"ten gigabytes" * 100


class Terminal(io.StringIO):
    """Somebody who types."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """The hub, for whoever asks it. One process works in an empty folder, and nobody is at the terminal."""
    for name in ("HF_TOKEN", "HF_ENDPOINT", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    asked = fetch.fetch_release
    with serve(Hub(CONTENT, path="/Drexubery/ViewCrafter_25_sparse/resolve/main/model_sparse.ckpt")) as served:
        monkeypatch.setattr(fetch, "fetch_release", lambda *given: asked(*given, endpoint=served.endpoint))
        yield served


def one_line(text: str) -> str:
    return " ".join(text.split())


def test_what_is_needed_is_said_and_nothing_is_fetched_unasked(hub: Hub, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(MissingWeightsError, match=f"`reconx weights fetch {NAME}` fetches it, .* with --yes"):
        provide_model(NAME, yes=False)
    said = one_line(capfd.readouterr().err)
    for part in (
        "model_sparse.ckpt",
        "Drexubery/ViewCrafter_25_sparse",
        "10.4 GB",
        str(PLACE),
        "licence",
        "Apache-2.0",
    ):
        assert part in said, part
    assert "[y/N]" not in said, "nobody is there to be asked"
    assert hub.requests == [] and not PLACE.exists()


@pytest.mark.parametrize(
    ("answer", "agreed"), [("y\n", True), ("YES\n", True), ("n\n", False), ("\n", False), ("", False)]
)
def test_somebody_at_a_terminal_is_asked_once(
    answer: str, agreed: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    if agreed:
        provide_model(NAME, yes=False)
        assert PLACE.read_bytes() == CONTENT and find_model(NAME).kind == "release"
    else:
        with pytest.raises(MissingWeightsError, match="is not here"):
            provide_model(NAME, yes=False)
        assert not PLACE.exists()
    said = capfd.readouterr()
    assert (said.out + said.err).count("[y/N]") == 1


def test_with_yes_nobody_is_asked_and_what_is_here_is_not_fetched(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)  # a service has none
    provide_model(NAME, yes=True)
    assert PLACE.read_bytes() == CONTENT
    hub.requests.clear()
    for name in (NAME, "runs/mine", "owner/name", None):
        provide_model(name, yes=True)
    assert hub.requests == []


def test_a_converted_release_is_here_and_a_folder_of_its_name_is_meant(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    provide_model(NAME, yes=True)
    (tmp_path / NAME).rmdir()
    (tmp_path / "weights" / NAME).mkdir(parents=True)
    (tmp_path / "weights" / NAME / "model.safetensors").touch()
    provide_model(NAME, yes=True)
    assert hub.requests == []


def test_several_processes_do_not_fetch_into_one_file(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(MissingWeightsError, match=f"fetch it once before, `reconx weights fetch {NAME}`"):
        provide_model(NAME, yes=True)
    assert hub.requests == []


def test_evaluations_fetch_too(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("reconx_pl.cli.evaluate_command._evaluation", lambda protocol: record(asked))
    command = ["--model", NAME, "--shards", "shards", "--out", "report"]
    with pytest.raises(SystemExit, match=f"reconx weights fetch {NAME}"):
        evaluate_main(command)
    assert asked == []
    evaluate_main([*command, "--no-diffusion"])
    assert len(asked) == 1 and not PLACE.exists(), "which needs no model"
    evaluate_main([*command, "--yes"])
    assert len(asked) == 2 and PLACE.read_bytes() == CONTENT


def record(asked: list[Any]) -> Any:
    def evaluate(
        *, model: str | None = None, shards: Path | None = None, out: Path | None = None, ablation: Any, progress: Any
    ) -> dict[str, Any]:
        """Evaluate nothing."""
        asked.append(model)
        return {"complete": True}

    return evaluate


def test_a_release_of_the_wrong_kind_is_left_to_what_finds_models() -> None:
    provide_model("dust3r-512-dpt", yes=True)
    with pytest.raises(ConfigurationError, match="dust3r-512-dpt generates no frames"):
        find_model("dust3r-512-dpt")
