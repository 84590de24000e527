"""One way to name a model: what each kind of name finds, and what is said where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from released_checkpoints import tiny
from safetensors.torch import save_file

from reconx_pl.diffusion.pipeline import SamplingConfig
from reconx_pl.errors import MissingWeightsError
from reconx_pl.training.models import NamedModel, find_model


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text("model: {sampling: {num_inference_steps: 7}}\n")
    save_file({"a": torch.zeros(1)}, folder / "weights.safetensors")
    (folder / "checkpoints" / "step=3.ckpt").write_bytes(b"checkpoint")
    return folder


def test_a_run_and_a_checkpoint_in_it(run: Path) -> None:
    whole, part = find_model(run), find_model(run / "checkpoints" / "step=3.ckpt")
    assert (whole.kind, whole.weights, whole.run) == ("run", run / "weights.safetensors", run)
    assert (part.kind, part.weights, part.run) == ("checkpoint", run / "checkpoints" / "step=3.ckpt", run)
    assert whole.sampling == part.sampling == SamplingConfig(num_inference_steps=7)
    settings = whole.sampling
    assert whole.identity(settings) != part.identity(settings), "other weights never inherit results"
    assert whole.identity(settings) != whole.identity(SamplingConfig()), "nor other sampling"
    assert whole.identity(settings) == find_model(str(run)).identity(settings)


def test_a_converted_folder_loads_and_generates(tmp_path: Path) -> None:
    tiny(4, seed=1).save_pretrained(tmp_path / "net")
    found = find_model(tmp_path / "net")
    assert (found.kind, found.run, found.sampling) == ("folder", None, SamplingConfig())
    pipeline = found.load(SamplingConfig(num_inference_steps=2))
    assert pipeline.config.num_inference_steps == 2 and not pipeline.network.training


def test_releases_are_found_where_they_were_fetched_or_converted(tmp_path: Path) -> None:
    name = "dynamicrafter-512-interp"
    with pytest.raises(MissingWeightsError, match=f"reconx weights fetch {name}"):
        find_model(name, tmp_path)
    (tmp_path / "dynamicrafter_512_interp.ckpt").write_bytes(b"weights")
    assert find_model(name, tmp_path) == NamedModel(name, "release", tmp_path / "dynamicrafter_512_interp.ckpt", None)
    (tmp_path / name).mkdir()
    (tmp_path / name / "model.safetensors").touch()
    assert find_model(name, tmp_path).kind == "folder", "a converted one loads faster"


def test_a_hub_name_is_fetched_and_read_as_what_it_is(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[str] = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda place, **_: asked.append(place) or str(run))
    assert find_model("owner/name").run == run and asked == ["owner/name"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("runs/nothing/here", "there is no model 'runs/nothing/here'"),
        ("alone.ckpt", "neither the folder of a training run"),
        ("empty", "neither the folder of a training run"),
        ("bare", "no weights at"),
    ],
)
def test_what_is_no_model(name: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "alone.ckpt").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.yaml").touch()
    with pytest.raises(MissingWeightsError, match=says):
        find_model(tmp_path / name if "/" not in name else name)
