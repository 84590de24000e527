"""One way to name a model: what each kind of name finds, and what is said where there is none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from released_checkpoints import tiny
from safetensors.torch import save_file

from reconx_pl.diffusion.pipeline import SamplingConfig
from reconx_pl.diffusion.weights.generation import ClipDefaults, GenerationDefaults
from reconx_pl.diffusion.weights.releases import release_defaults
from reconx_pl.errors import ConfigurationError, MissingWeightsError
from reconx_pl.training.models import NamedModel, find_model, model_source


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


def test_a_release_has_settings_of_its_own_and_what_is_given_leaves_the_rest(tmp_path: Path) -> None:
    (tmp_path / "viewcrafter_25.ckpt").write_bytes(b"weights")
    found = find_model("viewcrafter-25", tmp_path)
    assert found.clip == ClipDefaults(25, 576, 1024, 10.0) and found.sampling.last_step == "corrected"
    few = found.settings(SamplingConfig(num_inference_steps=10))
    assert few == replace(found.sampling, num_inference_steps=10), "ten steps, and the rest as the release has it"
    assert found.settings(SamplingConfig(last_step="official", eta=0.0)).last_step == "official"
    solver = SamplingConfig(sampler="dpm++")
    assert found.settings(solver) == solver, "which has no eta"
    assert found.settings(None) == found.sampling


def test_a_converted_release_generates_as_the_checkpoint_does(tmp_path: Path) -> None:
    name = "viewcrafter-25-512"
    (tmp_path / "viewcrafter_25_512.ckpt").write_bytes(b"weights")
    raw = find_model(name, tmp_path)
    (tmp_path / name).mkdir()
    (tmp_path / name / "model.safetensors").touch()
    (tmp_path / name / "config.json").touch()
    old = find_model(name, tmp_path)
    assert (old.kind, old.sampling, old.clip) == ("folder", SamplingConfig(), ClipDefaults()), "of an earlier version"
    (tmp_path / name / "generation.json").write_text(release_defaults(name).text())
    for found in (find_model(name, tmp_path), find_model(tmp_path / name)):
        assert found.kind == "folder" and found.defaults == raw.defaults == release_defaults(name)


def test_the_settings_of_a_run_are_its_own(run: Path) -> None:
    found = find_model(run)
    assert found.clip == ClipDefaults()
    (run / "generation.json").write_text(GenerationDefaults(clip=ClipDefaults(8, 64, 96, 10.0)).text())
    assert found.clip == find_model(run / "checkpoints" / "step=3.ckpt").clip == ClipDefaults(8, 64, 96, 10.0)
    assert found.sampling == SamplingConfig(num_inference_steps=7), "as its configuration says"
    assert found.settings(SamplingConfig(guidance_scale=2.0)) == SamplingConfig(guidance_scale=2.0)


def test_a_source_knows_the_clip_of_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "viewcrafter_25.ckpt").write_bytes(b"weights")
    source = model_source("viewcrafter-25", SamplingConfig(num_inference_steps=10))
    assert source.clip.frames == 25 and "last_step='corrected'" in source.identity and source.follows_cameras
    assert not model_source("viewcrafter-25", SamplingConfig(render=False)).follows_cameras
    assert source.identity != model_source("viewcrafter-25").identity


@pytest.mark.parametrize("name", ["dust3r-512-dpt", "lpips", "lpips-alex"])
def test_weights_of_another_kind_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"{name} generates no frames: its weights are for .*viewcrafter-25"):
        find_model(name, tmp_path)


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
