"""Runs of the command line that are guided by renders: they train, validate, predict, and go on exactly."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from frozen_encoders import UNET, write_encoders
from safetensors.torch import load_file
from shard_clips import pack
from tiny_run import logged, tiny_config
from torch import Tensor

from reconx_pl.cli.train import PlanCLI, main
from reconx_pl.data.datamodule import ShardDataModule
from reconx_pl.data.procedural import procedural_clip, write_procedural
from reconx_pl.data.shards.manifest import Manifest
from reconx_pl.data.shards.stream import ClipPass, read_clips
from reconx_pl.data.shards.tolerant_loader import FAILED
from reconx_pl.diffusion.conditioning.render_config import RenderConfig
from reconx_pl.diffusion.render_sources import clip_renders, guidance_inputs
from reconx_pl.errors import BadSceneError
from reconx_pl.training.module import ReconXModule
from reconx_pl.training.precompute import cache_shards, config_precomputers
from reconx_pl.training.runs import load_run
from reconx_pl.types import ClipBatch
from reconx_pl.visualization.video import read_mp4

LATENTS = 3 * 8**2  # of the demo's autoencoder
REPLACE = {"mode": "surface", "holes": "masked", "depth_noise": 0.1, "point_dropout": 0.2}
RESIDUAL = {
    **{"sources": ["depth", "splats"], "channels": "append", "holes": "filled", "residual": True},
    **{"splat_steps": 2, "depth_noise": 0.1},
}


def config_of(
    folder: Path, shards: Path, guidance: str, render: dict[str, Any] | None, steps: int = 2, **edits: Any
) -> Path:
    """A run of everything from nothing, with nothing beside training but what tells of it."""
    path = tiny_config(folder, shards, "base", steps=steps, checkpoint_every=2)
    config = yaml.safe_load(path.read_text())
    config["model"] |= {"stage": "everything", "optimizer": {"lr": 1e-3}}
    network = config["model"]["network"]["init_args"]
    more = 0 if render is None else RenderConfig(**render).extra_channels(LATENTS, 8)
    structured = guidance in ("structure", "both")
    network["unet"] |= {"in_channels": 2 * LATENTS + more, "structure_guidance": structured}
    network |= {"guidance": guidance, "render": render, "dropout": {"render": 0.3}}
    if not structured:
        network["structure"] = None
    network |= edits
    dropped = ("MediaCallback", "PreemptionCallback", "LearningRateMonitor")
    config["trainer"]["callbacks"] = [
        c for c in config["trainer"]["callbacks"] if not c["class_path"].endswith(dropped)
    ]
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_procedural(folder, count=6, first_seed=0, frames=4, size=(32, 32), points=64, clips_per_shard=2)
    return folder


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """The shards with renders of short fits, as ``reconx cache`` makes them of a run's configuration."""
    folder = tmp_path_factory.mktemp("fitted")
    cache_shards(shards, folder / "out", config_of(folder, shards, "both", RESIDUAL), device="cpu")
    return folder / "out"


def trained(folder: Path) -> tuple[dict[int, float], dict[str, Tensor]]:
    return logged(folder / "base", "train/loss"), load_file(folder / "base" / "weights.safetensors")


KINDS: dict[str, tuple[str, dict[str, Any]]] = {"render": ("render", REPLACE), "both": ("both", RESIDUAL)}


@pytest.mark.parametrize(("guidance", "render"), KINDS.values(), ids=KINDS)
def test_a_guided_run_trains_validates_and_resumes_exactly(
    shards: Path, fitted: Path, tmp_path: Path, guidance: str, render: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    for folder, parts in (("whole", (4,)), ("parts", (2, 4))):
        (tmp_path / folder).mkdir()
        for steps in parts:
            with caplog.at_level(logging.WARNING):
                main(["fit", "-c", str(config_of(tmp_path / folder, fitted, guidance, render, steps))])
    assert "cannot be counted" not in caplog.text and logged(tmp_path / "whole" / "base", "compute/tflops")
    assert len(logged(tmp_path / "whole" / "base", "val/loss")) == 2
    (losses, weights), (again, resumed) = trained(tmp_path / "whole"), trained(tmp_path / "parts")
    assert losses == again and len(losses) == 4
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)
    network = load_run(tmp_path / "whole" / "base").network
    assert network.guidance == guidance and network.render == RenderConfig(**render)
    first = weights["unet.input_blocks.0.0.weight"]
    if first.shape[1] > 2 * LATENTS:  # they have left zero
        assert bool((first[:, 2 * LATENTS :].abs().amax(dim=(0, 2, 3)) > 0).all())


def test_a_guided_run_predicts(shards: Path, tmp_path: Path) -> None:
    path = config_of(tmp_path, shards, "render", REPLACE, steps=1)
    main(["fit", "-c", str(path)])
    config = yaml.safe_load(path.read_text())
    callback = {
        "class_path": "reconx_pl.training.callbacks.callbacks.GeneratedClips",
        "init_args": {"out": str(tmp_path / "generated")},
    }
    config["trainer"] |= {"limit_predict_batches": 1, "callbacks": [callback]}
    config["ckpt_path"] = str(tmp_path / "base" / "checkpoints" / "last.ckpt")
    path.write_text(yaml.safe_dump(config))
    main(["predict", "-c", str(path), "--return_predictions", "false"])
    keys = [clip.key for clip in read_clips(shards)][:4]  # of a batch
    videos = sorted((tmp_path / "generated").glob("*.mp4"))
    assert [video.stem for video in videos] == sorted(keys)
    assert read_mp4(videos[0])[0].shape == (4, 32, 32, 3)


def test_shards_without_depth_are_refused_by_the_clip_s_name(shards: Path, tmp_path: Path) -> None:
    pack(tmp_path / "bare", [replace(clip, depth=None, confidence=None) for clip in read_clips(shards)], 2)
    first = Manifest.load(tmp_path / "bare").keys
    with pytest.raises(SystemExit, match=r"(?s)error: .*clip (\S+): has no depth, and guidance by rendering") as error:
        main(["fit", "-c", str(config_of(tmp_path, tmp_path / "bare", "render", REPLACE))])
    assert any(f"clip {key}: has no depth" in str(error.value) for key in first)


@pytest.mark.parametrize("plain", ["train", "val"])
def test_shards_without_the_renders_of_fits_stop_a_run_before_it_starts(
    shards: Path, fitted: Path, tmp_path: Path, plain: str
) -> None:
    path = config_of(tmp_path, fitted, "both", RESIDUAL)
    config = yaml.safe_load(path.read_text())
    config["data"][plain] = str(shards)
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(SystemExit, match=rf"error: {shards}: has no caches, .* needs splats-.*reconx cache"):
        main(["fit", "-c", str(path)])
    # fits of other settings are others
    config["data"][plain] = str(fitted)
    config["model"]["network"]["init_args"]["render"]["splat_steps"] = 3
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(SystemExit, match=rf"error: {fitted}: has splats-\w+.npy, .* needs splats-"):
        main(["fit", "-c", str(path)])


# --- renders of short fits


def test_cached_renders_are_those_of_a_fit_of_the_clip(fitted: Path) -> None:
    config = RenderConfig(**RESIDUAL)
    inputs = guidance_inputs(config)
    assert inputs is not None and inputs.splats is not None
    assert Manifest.load(fitted).settings["caches"] == [inputs.splats]
    clip = next(read_clips(fitted))
    batch = next(iter(ClipPass(fitted, points=0, renders=inputs)))
    seen = clip_renders(clip, replace(config, sources=("splats",), depth_noise=0.0, channels="replace"))
    stored = batch["splats"].float() / 255
    # the fit saw the frames before or after they were JPEG: the same ones, since shards are made of shards
    torch.testing.assert_close(stored[0, :, :3], seen.color[0, 0], atol=0.5 / 255 + 1e-5, rtol=0)
    torch.testing.assert_close(stored[0, :, 3], seen.coverage[0, 0], atol=0.5 / 255 + 1e-5, rtol=0)


def test_a_configuration_says_what_is_cached(shards: Path, tmp_path: Path) -> None:
    def names(render: dict[str, Any], **encoders: Any) -> list[str]:
        path = config_of(tmp_path, shards, "render", render, **encoders)
        made = config_precomputers(path, torch.device("cpu"), "32")
        return [name.split("-")[0] for maker in made for name in maker.names]

    assert names(RESIDUAL) == ["splats"]
    own = write_encoders(tmp_path / "encoders")
    parts = {"autoencoder": own["autoencoder"], "image_tokens": own["image_tokens"]}
    assert names(REPLACE, **parts) == ["moments", "clip"]
    assert names(RESIDUAL, **parts) == ["moments", "clip", "splats"]


def test_a_clip_without_depth_keeps_no_renders(shards: Path, tmp_path: Path) -> None:
    clips = list(read_clips(shards))[:2]
    pack(tmp_path / "some", [replace(clips[0], depth=None, cloud=None), clips[1]])
    report = cache_shards(tmp_path / "some", tmp_path / "out", config_of(tmp_path, shards, "both", RESIDUAL))
    assert len(report.without) == 1 and f"clip {clips[0].key} has neither depth" in report.without[0]


# --- with frozen encoders


def test_cached_latents_train_the_same_guided_model(shards: Path, tmp_path: Path) -> None:
    encoders = write_encoders(tmp_path / "encoders")
    encoders["unet"] = UNET | {"in_channels": 8}
    losses = {}
    for kind in ("frames", "caches"):
        folder = tmp_path / kind
        folder.mkdir()
        path = config_of(folder, shards, "render", {"holes": "masked"}, steps=3, **encoders)
        if kind == "caches":
            cache_shards(shards, tmp_path / "made", path, device="cpu")
            config = yaml.safe_load(path.read_text())
            config["data"] |= {"train": str(tmp_path / "made"), "val": str(tmp_path / "made"), "cached": True}
            path.write_text(yaml.safe_dump(config))
        main(["fit", "-c", str(path)])
        losses[kind] = list(trained(folder)[0].values())
    assert losses["frames"] != losses["caches"]  # of float16
    assert losses["caches"] == pytest.approx(losses["frames"], rel=2e-3)


# --- the plan


@pytest.mark.parametrize(("guidance", "render"), [("both", RESIDUAL), ("render", REPLACE | {"views": "pooled"})])
def test_a_guided_run_can_be_planned(shards: Path, tmp_path: Path, guidance: str, render: dict[str, Any]) -> None:
    planned = PlanCLI(["-c", str(config_of(tmp_path, shards, guidance, render))]).plan
    bare = PlanCLI(["-c", str(config_of(tmp_path, shards, "none", None))]).plan
    assert planned.flops.total > planned.flops.forward > bare.flops.forward // 2 > 0
    if guidance == "both":  # further input channels
        assert planned.flops.unet > bare.flops.unet and planned.trained["spatial"] > bare.trained["spatial"]


def test_tokens_with_colours_can_be_planned(shards: Path, tmp_path: Path) -> None:
    path = config_of(tmp_path, shards, "structure", None)
    config = yaml.safe_load(path.read_text())
    config["model"]["network"]["init_args"]["structure"] |= {"frame": "each", "color": True}
    path.write_text(yaml.safe_dump(config))
    plain = PlanCLI(["-c", str(config_of(tmp_path, shards, "structure", None))]).plan
    path.write_text(yaml.safe_dump(config))
    assert PlanCLI(["-c", str(path)]).plan.flops.total > plain.flops.total


def test_tokens_with_colours_in_every_frame_train(shards: Path, tmp_path: Path) -> None:
    path = config_of(tmp_path, shards, "structure", None)
    config = yaml.safe_load(path.read_text())
    config["model"]["network"]["init_args"]["structure"] |= {"frame": "each", "color": True}
    path.write_text(yaml.safe_dump(config))
    main(["fit", "-c", str(path)])
    losses, weights = trained(tmp_path)
    assert len(losses) == 2 and any(name.startswith("structure_encoder.embed_color") for name in weights)


# --- what the data module's hook makes


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    folder = tmp_path_factory.mktemp("module")
    main(["fit", "-c", str(config_of(folder, shards, "render", REPLACE, steps=1))])
    return folder / "base"


@pytest.fixture(scope="module")
def module(run: Path) -> ReconXModule:
    return load_run(run)


def at(module: ReconXModule, step: int, training: bool = True, fn: str = "fit") -> ReconXModule:
    """As if a trainer were at this step."""
    module._trainer = SimpleNamespace(  # type: ignore[assignment]
        training=training, validating=not training, global_step=step, state=SimpleNamespace(fn=fn)
    )
    return module


@pytest.fixture
def batch(shards: Path) -> ClipBatch:
    return next(iter(ClipPass(shards, 2, points=64, renders=guidance_inputs(RenderConfig()))))


def test_disturbances_follow_from_seed_step_and_clips(module: ReconXModule, batch: ClipBatch) -> None:
    def color(step: int, keys: list[str] | None = None, **options: Any) -> Tensor:
        shown = batch if keys is None else {**batch, "key": keys}
        return at(module, step, **options).with_renders(shown)["renders"].color  # type: ignore[arg-type]

    assert torch.equal(color(3), color(3)) and not torch.equal(color(3), color(4))
    assert not torch.equal(color(3), color(3, ["a", "b"]))
    held_out = color(3, training=False)
    assert torch.equal(held_out, color(4, training=False)) and not torch.equal(held_out, color(3))
    module.seed += 1
    other = color(3)
    module.seed -= 1
    assert not torch.equal(other, color(3))
    assert "renders" not in batch


def test_held_out_clips_that_cannot_be_rendered_do_not_end_a_run(
    module: ReconXModule, batch: ClipBatch, caplog: pytest.LogCaptureFixture
) -> None:
    batch["depth"] = torch.zeros_like(batch["depth"])
    assert at(module, 3, training=False).with_renders(batch) is FAILED
    assert f"rendering for validation failed on {', '.join(batch['key'])}" in caplog.text
    assert "no pixel of any view has a depth" in caplog.text
    for fn, training in (("validate", False), ("fit", True)):
        with pytest.raises(BadSceneError, match=f"clip {batch['key'][0]}: no pixel"):
            at(module, 3, training, fn).with_renders(batch)
    assert at(module, 3, training=False).with_renders(dict(FAILED)) == {}  # type: ignore[arg-type]


class TakesShardsAway(L.Callback):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for shard in self.folder.glob("*.tar"):
            shard.unlink()


def test_held_out_shards_that_vanish_do_not_end_a_guided_run(
    run: Path, shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(shards, tmp_path / "val")
    own = load_run(run)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=2,
        val_check_interval=1,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        callbacks=[TakesShardsAway(tmp_path / "val")],
        **quiet,
    )
    trainer.fit(own, ShardDataModule(str(shards), str(tmp_path / "val"), points=64, batch_size=2))
    assert trainer.global_step == 2 and "reading held-out clips failed" in caplog.text
    assert "val/loss" not in trainer.callback_metrics


def test_the_clip_of_a_batch_is_the_clip_of_a_shard(module: ReconXModule, batch: ClipBatch, shards: Path) -> None:
    clips = list(read_clips(shards))[:2]
    seen = at(module, 0, training=False).with_renders(batch)["renders"]
    for number, clip in enumerate(clips):
        assert torch.equal(seen.color[number], clip_renders(clip, RenderConfig()).color[0])
    assert procedural_clip(0, 2, (32, 32), points=10).key.rpartition("-")[2] == clips[0].key.rpartition("-")[2]
