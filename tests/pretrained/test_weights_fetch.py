"""Checkpoints from a stand-in of the hub: whole, resumed, verified, or refused with the reason."""

from __future__ import annotations

import errno
import hashlib
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from hub_stand_in import Hub, serve
from huggingface_hub import constants, file_download

from reconx_pl.cli import main as cli
from reconx_pl.diffusion.weights import releases
from reconx_pl.diffusion.weights.releases import GEOMETRY_RELEASES, RELEASES, HubFile, Release
from reconx_pl.errors import BadWeightsError, ConfigurationError, MissingWeightsError
from reconx_pl.geometry.da3.pretrained import WEIGHTS
from reconx_pl.pretrained import fetch
from reconx_pl.pretrained.fetch import fetch_release

RELEASE = Release("Name", "owner/name", "name.ckpt", 320, 512, 0.7, 24.0)
CONTENT = bytes(range(256)) * 4000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    for name in ("HF_TOKEN", "HF_ENDPOINT", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 50_000)  # 10 MB otherwise; a part of one is lost in a cut
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between the library's retries
    with serve(Hub(CONTENT)) as served:
        yield served


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_whole_download_is_verified_and_recorded(hub: Hub, tmp_path: Path) -> None:
    path = fetch_release(RELEASE, tmp_path / "weights", endpoint=hub.endpoint)
    assert path == tmp_path / "weights" / "name.ckpt" and path.read_bytes() == CONTENT
    assert (path.parent / "name.ckpt.sha256").read_text() == f"{DIGEST}  name.ckpt\n"
    assert names(path.parent) == {"name.ckpt", "name.ckpt.sha256"}
    assert hub.requests == [("HEAD", None), ("GET", None)]
    # what is there is verified against the record, without asking anybody
    assert fetch_release(RELEASE, path.parent, endpoint="http://127.0.0.1:9") == path
    assert len(hub.requests) == 2
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(BadWeightsError, match=r"name\.ckpt is there and has sha256.*Move it away"):
        fetch_release(RELEASE, path.parent, endpoint=hub.endpoint)
    assert path.read_bytes() == CONTENT[:-1]


def test_a_cut_connection_is_resumed_with_a_range(hub: Hub, tmp_path: Path) -> None:
    hub.cut_after = [300_000]
    path = fetch_release(RELEASE, tmp_path, endpoint=hub.endpoint)
    assert path.read_bytes() == CONTENT
    first, second = hub.gets()
    assert first is None and second is not None
    start = int(second.removeprefix("bytes=").rstrip("-"))
    assert 0 < start <= 300_000
    assert hub.sent == 300_000 + len(CONTENT) - start


def test_the_next_run_goes_on_where_the_last_one_stopped(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.cut_after = [200_000, *[0] * 50]
    with pytest.raises(MissingWeightsError, match=r"stopped at (\d+) of 1024000 bytes.*go on from there"):
        fetch_release(RELEASE, tmp_path, endpoint=hub.endpoint)
    (partial,) = tmp_path.iterdir()
    have = partial.stat().st_size
    assert 0 < have <= 200_000
    hub.cut_after, hub.sent = [], 0
    hub.requests.clear()
    assert fetch_release(RELEASE, tmp_path, endpoint=hub.endpoint).read_bytes() == CONTENT
    assert hub.gets() == [f"bytes={have}-"] and hub.sent == len(CONTENT) - have
    assert names(tmp_path) == {"name.ckpt", "name.ckpt.sha256"}


def test_a_download_that_was_only_not_verified_yet_is_not_repeated(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / f"name.ckpt.{DIGEST[:12]}.partial").write_bytes(CONTENT)
    assert fetch_release(RELEASE, tmp_path, endpoint=hub.endpoint).read_bytes() == CONTENT
    assert hub.gets() == []


def test_what_arrives_damaged_is_removed(hub: Hub, tmp_path: Path) -> None:
    hub.sha256 = "0" * 64
    with pytest.raises(BadWeightsError, match=rf"sha256 {DIGEST}, expected 0{{64}}; it was removed"):
        fetch_release(RELEASE, tmp_path, endpoint=hub.endpoint)
    assert names(tmp_path) == set()


def test_a_given_checksum_counts(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(BadWeightsError, match="states sha256.*nothing was fetched"):
        fetch_release(RELEASE, tmp_path, sha256="1" * 64, endpoint=hub.endpoint)
    with pytest.raises(ConfigurationError, match="64 hexadecimal"):
        fetch_release(RELEASE, tmp_path, sha256="abc", endpoint=hub.endpoint)
    assert hub.gets() == []
    hub.sha256 = "not-a-checksum"
    with pytest.raises(BadWeightsError, match="--sha256"):
        fetch_release(RELEASE, tmp_path, endpoint=hub.endpoint)
    assert fetch_release(RELEASE, tmp_path, sha256=DIGEST.upper(), endpoint=hub.endpoint).read_bytes() == CONTENT


def test_a_file_brought_by_hand_is_verified_offline(tmp_path: Path) -> None:
    (tmp_path / "name.ckpt").write_bytes(CONTENT)
    assert fetch_release(RELEASE, tmp_path, sha256=DIGEST, endpoint="http://127.0.0.1:9").is_file()
    assert (tmp_path / "name.ckpt.sha256").read_text().startswith(DIGEST)
    with pytest.raises(BadWeightsError, match="is there and has sha256"):
        fetch_release(RELEASE, tmp_path, sha256="1" * 64, endpoint="http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "/elsewhere"}, "no such file or revision"),
        ({"status": 401}, r"gated, private or gone.*huggingface\.co/owner/name.*HF_TOKEN"),
        ({"status": 403, "gated": True}, r"gated, private or gone.*HF_TOKEN"),
        ({"status": 404}, "no such repository or file"),
        ({"status": 500}, r"(?s)cannot be reached.*HF_ENDPOINT.*--sha256"),
    ],
)
def test_refusals_say_what_to_do(change: dict[str, Any], message: str, hub: Hub, tmp_path: Path) -> None:
    for name, value in change.items():
        setattr(hub, name, value)
    with pytest.raises(MissingWeightsError, match=message):
        fetch_release(RELEASE, tmp_path / "weights", endpoint=hub.endpoint)
    assert not (tmp_path / "weights").exists() and hub.gets() == []


def test_without_network_the_manual_way_is_named(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(MissingWeightsError) as error:
        fetch_release(RELEASE, tmp_path, endpoint="http://127.0.0.1:9")
    for part in ("127.0.0.1:9", "HF_ENDPOINT", "https://huggingface.co/owner/name", str(tmp_path / "name.ckpt")):
        assert part in str(error.value)


def test_no_space_is_said_before_the_download(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 5, 5))  # type: ignore[attr-defined]
    with pytest.raises(MissingWeightsError, match=r"GB are needed for name\.ckpt.*--folder"):
        fetch_release(RELEASE, tmp_path, endpoint=hub.endpoint)
    assert hub.gets() == []


def test_a_disk_that_fills_up(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(file_download, "http_get", full)
    with pytest.raises(MissingWeightsError, match="the disk is full"):
        fetch_release(RELEASE, tmp_path, endpoint=hub.endpoint)


@pytest.mark.parametrize("foreign", [False, True])
def test_the_token_stays_with_the_hub(foreign: bool, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    if foreign:  # another host name of the same server stands for the store of large files
        hub.location = hub.endpoint.replace("127.0.0.1", "localhost") + "/store"
    fetch_release(RELEASE, tmp_path, endpoint=hub.endpoint)
    head, get = hub.authorization
    assert head == "Bearer hf_secret" and get == (None if foreign else "Bearer hf_secret")


def test_the_command_fetches_a_release(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(releases.RELEASES, "viewcrafter-25", RELEASE)
    asked = fetch.fetch_release

    def at_the_stand_in(*arguments: Any) -> Path:
        return asked(*arguments, endpoint=hub.endpoint)

    monkeypatch.setattr(fetch, "fetch_release", at_the_stand_in)
    monkeypatch.chdir(tmp_path)
    cli.main(["weights", "fetch", "viewcrafter-25", "--sha256", DIGEST])
    assert (tmp_path / "weights" / "name.ckpt").read_bytes() == CONTENT
    assert "name.ckpt" in capfd.readouterr().err
    with pytest.raises(SystemExit, match="lpips has checksums of its own"):
        cli.main(["weights", "fetch", "lpips", "--sha256", DIGEST])


def test_releases_have_places_of_their_own() -> None:
    assert huggingface_hub.hf_hub_url("Doubiiu/DynamiCrafter_512_Interp", "model.ckpt").endswith(
        f"{RELEASES['dynamicrafter-512-interp'].repository}/resolve/main/model.ckpt"
    )
    everything = [*RELEASES.values(), *GEOMETRY_RELEASES.values()]
    assert len({release.saved_as for release in everything}) == len(everything)


@pytest.mark.parametrize("name", ["da3-base", "da3-small"])
def test_depth_anything_3_comes_from_its_repository_with_its_licence(
    name: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    known = GEOMETRY_RELEASES[name]
    assert known.repository == f"depth-anything/{name.upper()}" and known.file == "model.safetensors"
    assert known.saved_as == WEIGHTS[name].name, "fetched to where the estimator looks"  # type: ignore[index]
    # the stand-in has another content: of this size, and with ends of its own
    ends = (DIGEST[:8], DIGEST[-4:])
    monkeypatch.setitem(releases.GEOMETRY_RELEASES, name, replace(known, bytes=len(CONTENT), sha256_ends=ends))
    hub.path = f"/{known.repository}/resolve/main/model.safetensors"
    asked = fetch.fetch_release
    monkeypatch.setattr(fetch, "fetch_release", lambda *arguments: asked(*arguments, endpoint=hub.endpoint))
    monkeypatch.chdir(tmp_path)
    cli.main(["weights", "fetch", name])
    assert (tmp_path / WEIGHTS[name]).read_bytes() == CONTENT  # type: ignore[index]
    said = " ".join(capfd.readouterr().err.split())
    assert "Apache-2.0 by their authors' README" in said and "docs/licences.md" in said


@pytest.mark.parametrize(
    "change", [{"bytes": len(CONTENT) + 1}, {"sha256_ends": ("0" * 8, DIGEST[-4:])}, {"sha256_ends": (DIGEST[:8], "x")}]
)
def test_a_file_that_is_not_the_recorded_one_is_not_fetched_unasked(
    change: dict[str, Any], hub: Hub, tmp_path: Path
) -> None:
    right = replace(RELEASE, bytes=len(CONTENT), sha256_ends=(DIGEST[:8], DIGEST[-4:]))
    other = replace(right, **change)
    with pytest.raises(
        BadWeightsError, match=rf"states 1024000 bytes and sha256 {DIGEST}.*Nothing was fetched.*--sha256"
    ):
        fetch_release(other, tmp_path / "weights", endpoint=hub.endpoint)
    assert hub.gets() == [] and not (tmp_path / "weights").exists()
    assert fetch_release(other, tmp_path / "asked", sha256=DIGEST, endpoint=hub.endpoint).is_file()
    assert fetch_release(right, tmp_path / "weights", endpoint=hub.endpoint).read_bytes() == CONTENT


def test_what_may_not_be_used_commercially_is_said_before_it_is_fetched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    asked: list[HubFile] = []

    def recorded(release: HubFile, *arguments: Any) -> Path:
        assert "CC BY-NC-SA 4.0: not for commercial use" in " ".join(capfd.readouterr().err.split())
        asked.append(release)
        return tmp_path / release.saved_as

    monkeypatch.setattr(fetch, "fetch_release", recorded)
    cli.main(["weights", "fetch", "dust3r-512-dpt"])
    (release,) = asked
    assert (release.repository, release.file) == ("naver/DUSt3R_ViTLarge_BaseDecoder_512_dpt", "model.safetensors")
    assert release.saved_as.endswith(".safetensors")  # the suffix says how it is read
