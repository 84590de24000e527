"""The list of weights: what is here and whole, what is damaged, what nobody can tell; never the network."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest
import torch
from released_checkpoints import tiny
from safetensors.torch import save_file

from reconx_pl.cli.main import main
from reconx_pl.diffusion.weights.releases import GEOMETRY_RELEASES, RELEASES
from reconx_pl.errors import ConfigurationError
from reconx_pl.files.checksums import SUMS
from reconx_pl.metrics import lpips_weights
from reconx_pl.pretrained import inventory as module
from reconx_pl.pretrained.inventory import Weights, chosen, examine, inventory

CONTENT = b"weights" * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def empty_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv(lpips_weights.ENVIRONMENT, raising=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "weights").mkdir()
    return tmp_path / "weights"


def fetched(folder: Path, recorded: str | None = DIGEST) -> Path:
    """The base model as ``reconx weights fetch`` leaves it."""
    path = folder / "dynamicrafter_512_interp.ckpt"
    path.write_bytes(CONTENT)
    if recorded:
        path.with_name(f"{path.name}.sha256").write_text(f"{recorded}  {path.name}\n")
    return path


def named(name: str, folder: Path) -> Weights:
    (found,) = chosen([name], folder)
    return found


def test_everything_that_fetch_knows_is_listed(folder: Path) -> None:
    found = {weights.name: weights for weights in inventory(folder)}
    assert set(found) == {"reconx-mini", "lpips-vgg", "lpips-alex", *GEOMETRY_RELEASES, *RELEASES}
    assert [name for name, weights in found.items() if weights.present] == ["reconx-mini"], "it comes along"
    assert all(weights.purpose and weights.licence and weights.bytes for weights in found.values())
    assert [name for name, weights in found.items() if not weights.commercial] == ["dust3r-512-dpt"]
    assert (found["da3-base"].bytes, found["da3-small"].bytes) == (541_518_028, 137_248_940)
    assert found["lpips-vgg"].bytes == 4 * 14_714_688  # parameters of VGG16's convolutions
    assert found["viewcrafter-25"].fetch_command == f"reconx weights fetch viewcrafter-25 --folder {folder}"
    assert found["lpips-alex"].fetch_command == "reconx weights fetch lpips"
    assert named("viewcrafter-25", Path("weights")).fetch_command == "reconx weights fetch viewcrafter-25"


def test_a_fetched_file_is_read_once_and_then_remembered(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fetched(folder)
    weights = named("dynamicrafter-512-interp", folder)
    assert weights.present and weights.place == path and weights.bytes == len(CONTENT)
    assert examine(weights, read=False).status == "unverified"
    seen: list[tuple[str, int, int | None]] = []
    assert examine(weights, lambda *now: seen.append(now)).status == "verified"
    assert seen[-1] == ("reading dynamicrafter_512_interp.ckpt", len(CONTENT), len(CONTENT))
    monkeypatch.setattr(module, "file_sha256", None)  # from here on nothing may be read
    assert examine(weights, read=False).status == "verified"
    path.write_bytes(CONTENT[:-1])
    assert examine(weights, read=False).status == "unverified"


def test_a_damaged_file_is_told_with_the_remedy(folder: Path) -> None:
    path = fetched(folder)
    path.write_bytes(CONTENT[:-1] + b"S")
    verdict = examine(named("dynamicrafter-512-interp", folder))
    assert verdict.status == "damaged" and DIGEST in verdict.text
    assert verdict.remedy == f"move it away, then reconx weights fetch dynamicrafter-512-interp --folder {folder}"
    assert examine(named("dynamicrafter-512-interp", folder), read=False).status == "damaged"  # as was found out


def test_what_has_no_checksum_and_what_is_half_here(folder: Path) -> None:
    fetched(folder, recorded=None)
    verdict = examine(named("dynamicrafter-512-interp", folder))
    assert verdict.status == "unrecorded" and "reconx weights fetch dynamicrafter-512-interp" in verdict.remedy
    (folder / "dust3r_512_dpt.safetensors.0123456789ab.partial").write_bytes(b"half")
    verdict = examine(named("dust3r-512-dpt", folder))
    assert verdict.status == "absent" and "a download was begun" in verdict.text


def test_a_converted_folder_is_compared_with_its_list(folder: Path) -> None:
    tiny(4, seed=1).save_pretrained(folder / "interp")
    weights = named("interp", folder)
    assert weights == named(str(folder / "interp"), folder) == named(str(folder / "interp"), Path("elsewhere"))
    assert examine(weights, read=False).status == "verified"  # written here, read for the list
    with (folder / "interp" / "model.safetensors").open("r+b") as file:
        file.seek(-5, 2)
        file.write(b"\x7f")
    assert examine(weights).status == "damaged"
    (folder / "interp" / "config.json").unlink()
    assert "config.json is missing" in examine(weights, read=False).text
    os.utime(folder / "interp" / "model.safetensors")  # not read since; what is missing is seen without that
    assert examine(weights, read=False).status == "damaged"
    (folder / "interp" / SUMS).unlink()
    verdict = examine(weights)
    assert verdict.status == "unrecorded" and f"> {SUMS}" in verdict.remedy


def test_backbones_are_found_where_the_fit_finds_them(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache" / "reconx_pl" / "lpips"
    cache.mkdir(parents=True)
    state = {name: torch.rand(shape) for name, shape in lpips_weights._shapes("alex").items()}
    digest = lpips_weights.tensors_sha256(state)
    save_file(state, cache / lpips_weights.FILE_NAMES["alex"], {"sha256": digest})
    assert [weights.name for weights in chosen([], folder)] == ["reconx-mini", "lpips-alex"]
    assert examine(named("lpips-alex", folder), read=False).status == "verified"
    assert [weights.name for weights in chosen(["lpips"], folder)] == ["lpips-vgg", "lpips-alex"]
    save_file(state, cache / lpips_weights.FILE_NAMES["alex"], {"sha256": "0" * 64})
    assert examine(named("lpips-alex", folder), read=False).status == "damaged"


def test_an_unknown_name_lists_the_known(folder: Path) -> None:
    with pytest.raises(
        ConfigurationError, match=r"nothing: neither.*\(reconx-mini, lpips, da3-base, da3-small, dust3r-512-dpt, "
    ):
        chosen(["nothing"], folder)


def test_the_commands(folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = fetched(folder)
    main(["weights", "list", "--folder", str(folder)])
    listed = capfd.readouterr().out
    assert "licence: NON-COMMERCIAL. DUSt3R's weights are under CC BY-NC-SA 4.0" in listed
    assert listed.count("NON-COMMERCIAL") == 1 and "unverified" in listed and str(path) in listed
    main(["weights", "verify", "--folder", str(folder)])
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].startswith("reconx-mini: verified, SHA-256 ")
    assert lines[1:] == [f"dynamicrafter-512-interp: verified, SHA-256 {DIGEST[:12]}"]
    shutil.copy(path, folder / "viewcrafter_25.ckpt")
    with pytest.raises(SystemExit) as stopped:
        main(["weights", "verify", "viewcrafter-25", "dust3r-512-dpt", str(path), "--folder", str(folder)])
    assert "viewcrafter-25 is unrecorded" in str(stopped.value) and "dust3r-512-dpt is absent" in str(stopped.value)
    output = capfd.readouterr().out
    assert "dynamicrafter-512-interp: verified" in output
