"""The kits of the repository: small, complete, and the numbers of the whole collection unchanged."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_kits import OWN, SHARED
from golden_weights import STORED, checksum, complete_kits, drawn_weights, lacks_weights
from safetensors.torch import load_file, save_file

WHOLE = SHARED / "golden"
ADDED = ("drawn", "left_out")
KITS = sorted(OWN.glob("*.json"))
DRAWN = [kit for kit in KITS if kit.with_name(f"{kit.stem}{STORED}").exists()]
each_kit = pytest.mark.parametrize("kit", KITS, ids=lambda kit: kit.stem)


def described(kit: Path) -> dict:
    return json.loads(kit.read_text(encoding="utf-8"))


def test_the_folder_is_small_and_described() -> None:
    complete_kits(OWN)
    made = {kit.with_suffix(".safetensors") for kit in DRAWN}
    files = [path for path in OWN.iterdir() if path not in made]
    assert sum(path.stat().st_size for path in files) <= 5_000_000
    readme = (OWN / "README.md").read_text()
    assert [kit.stem for kit in KITS if f"`{kit.stem.removesuffix('.info')}`" not in readme] == []
    assert DRAWN and {path.suffix for path in files} == {".json", ".safetensors", ".npz", ".md"}


@each_kit
def test_a_kit_says_what_the_whole_one_says(kit: Path) -> None:
    if not (WHOLE / kit.name).is_file():
        pytest.skip(f"needs the whole collection in {WHOLE}")
    own = described(kit)
    assert {key: value for key, value in own.items() if key not in ADDED} == described(WHOLE / kit.name)
    complete_kits(OWN)
    tensors = kit.with_suffix(".safetensors")
    if tensors.exists():
        found, whole = load_file(tensors), load_file(WHOLE / tensors.name)
        assert whole.keys() - found.keys() == set(own.get("left_out", []))
        assert all(torch.equal(value, whole[name]) for name, value in found.items())
    if (arrays := kit.with_suffix(".npz")).exists():
        with np.load(arrays) as found, np.load(WHOLE / arrays.name) as whole:
            assert found.files == whole.files and all(np.array_equal(found[name], whole[name]) for name in found.files)


def test_weights_that_this_torch_draws_otherwise_are_not_written(tmp_path: Path) -> None:
    description = {"tensors": {"a.weight": {"shape": [3]}}, "drawn": {"parts": [{"seed": 1, "order": ["a."]}]}}
    kit = tmp_path / "small.json"
    save_file({"io.x": torch.zeros(1)}, tmp_path / f"small{STORED}")
    for sha256, lacking in (("0" * 64, True), (checksum(drawn_weights(description)), False)):
        description["drawn"]["sha256"] = sha256
        kit.write_text(json.dumps(description))
        with warnings.catch_warnings(record=True) as caught:
            complete_kits(tmp_path)
        assert lacks_weights(kit) is lacking and bool(caught) is lacking
    assert load_file(kit.with_suffix(".safetensors")).keys() == {"a.weight", "io.x"}
