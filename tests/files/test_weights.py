"""Weight files: prefixes, both file types, exact loading, nothing unpickled."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from reconx_pl.errors import BadWeightsError, MissingWeightsError
from reconx_pl.files.weights import load_exactly, read_state

STATE = {"part.weight": torch.ones(2, 3), "part.bias": torch.zeros(2), "other.weight": torch.ones(1)}


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "wrapped.ckpt"])
def test_one_part_of_a_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith(".safetensors"):
        save_file(STATE, path)
    else:
        torch.save({"state_dict": STATE} if name.endswith(".ckpt") else STATE, path)
    state = read_state(path, ("absent.", "part.", ""))
    assert set(state) == {"weight", "bias"} and torch.equal(state["weight"], STATE["part.weight"])
    assert set(read_state(path)) == set(STATE)
    with pytest.raises(BadWeightsError, match=rf"{name}.*absent"):
        read_state(path, ("absent.",))


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(MissingWeightsError, match=r"nowhere\.pt"):
        read_state(tmp_path / "nowhere.pt")
    torch.save([1, 2, 3], tmp_path / "list.pt")
    with pytest.raises(BadWeightsError, match=r"list\.pt.*mapping"):
        read_state(tmp_path / "list.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(BadWeightsError, match=r"text\.pt"):
        read_state(tmp_path / "text.pt")


def test_loading_names_every_difference() -> None:
    layer = nn.Linear(3, 2)
    load_exactly(layer, {"weight": torch.full((2, 3), 7.0), "bias": torch.zeros(2)}, "f")
    assert layer.weight.eq(7).all()
    with pytest.raises(
        BadWeightsError, match=r"file\.pt.*1 missing: bias.*1 unexpected: bais.*weight: file \(3, 2\), model \(2, 3\)"
    ):
        load_exactly(layer, {"weight": torch.zeros(3, 2), "bais": torch.zeros(2)}, "file.pt")
