"""``reconx protocols``, as the shell calls it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from raw_scenes import write_posed

from reconx_pl.cli.main import main
from reconx_pl.evaluation.protocols.files import protocol_names


def said(capfd: pytest.CaptureFixture[str]) -> str:
    return " ".join(capfd.readouterr().err.split())


def refused(arguments: list[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(["protocols", *arguments])
    return str(stopped.value.code)


def own_protocol(folder: Path, scenes: dict[str, int]) -> Path:
    """A protocol of posed scenes; each scores one frame."""
    entries = {name: {"context": [0, 4], "target": [target]} for name, target in scenes.items()}
    content = {"name": "own", "title": "Own scenes", "dataset": "own", "format": "posed", "path": "scenes/{scene}"}
    content |= {"height": 32, "width": 32, "poses": {"generated": "interpolated"}, "entries": entries}
    (folder / "own.yaml").write_text(yaml.safe_dump(content))
    return folder / "own.yaml"


def test_list_names_every_protocol(capfd: pytest.CaptureFixture[str]) -> None:
    main(["protocols", "list"])
    words = said(capfd).split()
    assert set(protocol_names()) <= set(words) and "6,474" in words


def test_show_says_what_a_protocol_is(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    main(["protocols", "show", "re10k-hard"])
    text = said(capfd)
    assert "noposplat_evaluation_index_re10k.json from https://" in text and "entries 192" in text
    assert "published ReconX: PSNR 23.7, SSIM 0.867, LPIPS 0.143" in text and "never" not in text.split("note")[0]
    main(["protocols", "show", "tanks-3"])
    text = said(capfd)
    assert "targets one in 8 of the frames, 3 contexts evenly among the others" in text and "PSNR 15.38" in text
    main(["protocols", "show", str(own_protocol(tmp_path, {"a": 2}))])
    assert "index none needed views listed" in said(capfd)
    assert "there are acid-easy" in refused(["show", "re10k"])


def test_fetch_from_a_folder(tmp_path: Path, shared_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    name = "mvsplat_evaluation_index_dtu_nctx2.json"
    shutil.copy(shared_dir / "indices" / name, mirror)
    arguments = ["--to", str(tmp_path / "here"), "--mirror", mirror.as_uri()]
    main(["protocols", "fetch", "dtu-mvsplat", *arguments])
    assert f"{name}: fetched" in said(capfd)
    assert (tmp_path / "here" / name).read_bytes() == (mirror / name).read_bytes()
    main(["protocols", "fetch", "dtu-mvsplat", *arguments])
    assert f"{name}: was there" in said(capfd)
    main(["protocols", "fetch", "llff", *arguments])
    assert "llff needs no index file" in said(capfd)
    text = refused(["fetch", *arguments])  # all: the others are not at the mirror
    assert "pixelsplat_evaluation_index_re10k.json" in text and name not in text and "by hand" in text


def test_fetch_of_everything(tmp_path: Path, shared_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECONX_INDICES", str(tmp_path / "indices"))
    main(["protocols", "fetch", "--mirror", (shared_dir / "indices").resolve().as_uri()])
    assert len(list((tmp_path / "indices").iterdir())) == 6  # every checksum is that of the published file


def test_check_finds_what_is_there_and_names_what_is_not(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_posed(tmp_path / "scenes/a")
    write_posed(tmp_path / "scenes/b")
    data = ["--data", str(tmp_path)]
    main(["protocols", "check", str(own_protocol(tmp_path, {"a": 2, "b": 3})), *data, "--read"])
    assert "all 2 entries are there" in said(capfd)
    protocol = str(own_protocol(tmp_path, {"a": 2, "b": 9, "c": 2}))
    text = refused(["check", protocol, *data])
    assert "1 of 3 entries cannot be evaluated" in text and "scenes/c does not exist" in text
    text = refused(["check", protocol, *data, "--read"])
    assert "2 of 3 entries" in text and "b: own, b: frame 9 is asked for and scene b has 5 frames" in text


def test_check_says_a_common_reason_once(tmp_path: Path, shared_dir: Path) -> None:
    indices = ["--indices", str(shared_dir / "indices")]
    text = refused(["check", "re10k-hard", "--data", str(tmp_path), *indices])
    assert "192 of 192 entries" in text and "and 191 more" in text and text.count("does not exist") == 1
    text = refused(["check", "re10k-hard", "--data", str(tmp_path), "--indices", str(tmp_path)])
    assert "reconx protocols fetch re10k-hard" in text
