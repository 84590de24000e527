"""What a run logs of itself is what the run was."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from golden_kits import REPOSITORY
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from rank_program import NumberedBatches, numbered_batch, tiny_network
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_run import logged, tiny_config
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh

from reconx_pl.cli.train import main
from reconx_pl.data.procedural import write_procedural
from reconx_pl.errors import ConfigurationError
from reconx_pl.training.callbacks.callbacks import MediaCallback, ThroughputCallback, limited
from reconx_pl.training.callbacks.observe import ObserveCallback
from reconx_pl.training.callbacks.profile import TraceProfiler
from reconx_pl.training.module import ReconXModule
from reconx_pl.training.optimizer import OptimizerConfig
from reconx_pl.training.plan.meta_model import build_meta_model
from reconx_pl.training.plan.step_flops import count_step
from reconx_pl.training.sharding import shard_network
from reconx_pl.training.stages import Stage, apply_stage


class Kept(L.Callback):
    def __init__(self) -> None:
        self.outputs: list[dict[str, torch.Tensor]] = []
        self.gates: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.outputs.append({name: value.detach().clone() for name, value in outputs.items()})
        named = pl_module.network.unet.named_parameters()
        self.gates.append({n: math.tanh(float(p.detach())) for n, p in named if n.endswith("structure_gate")})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Kept]:
    folder, kept = tmp_path_factory.mktemp("observed"), Kept()
    module = ReconXModule(tiny_network(checkpointing=False), Stage.structure, OptimizerConfig(lr=1e-2))
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=6,
        limit_val_batches=0,
        log_every_n_steps=3,
        logger=TensorBoardLogger(str(folder), name="run", version=""),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[kept, ObserveCallback(ranges=4, peak_tflops=0.25)],
    )
    trainer.fit(module, NumberedBatches())
    return folder / "run", kept


def test_losses_by_diffusion_step(run: tuple[Path, Kept]) -> None:
    folder, kept = run
    low, high = logged(folder, "loss_by_step/000-249"), logged(folder, "loss_by_step/250-499")
    t = torch.cat([output["t"] for output in kept.outputs[3:]])
    losses = torch.cat([output["per_sample"] for output in kept.outputs[3:]])
    assert sorted(t.tolist()) == [133, 177, 256, 336, 354, 366]  # both ranges, and no other
    assert low[5] == pytest.approx(float(losses[t < 250].mean()), rel=1e-5)
    assert high[5] == pytest.approx(float(losses[t >= 250].mean()), rel=1e-5)
    assert 5 not in logged(folder, "loss_by_step/500-749")  # what it was three steps before is not said again


def test_gates_of_every_layer(run: tuple[Path, Kept]) -> None:
    folder, kept = run
    for name, value in kept.gates[-1].items():
        layer = name.removesuffix(".attn2.structure_gate").replace(".transformer_blocks", "")
        assert logged(folder, f"gates/{layer}")[5] == pytest.approx(value, rel=1e-5)
    assert len(kept.gates[-1]) == 4 and any(value for value in kept.gates[-1].values())


def test_memory_and_work_are_plausible(run: tuple[Path, Kept]) -> None:
    folder, _ = run
    assert 0.1 < logged(folder, "memory/peak_gib")[5] < 64
    tflops, share = logged(folder, "compute/tflops"), logged(folder, "compute/utilisation")
    assert tflops[5] > 0 and share[5] == pytest.approx(tflops[5] / 0.25, rel=1e-4)


def trainer_of(folder: Path, *callbacks: L.Callback, steps: int = 2, **options: Any) -> L.Trainer:
    settings: dict[str, Any] = {"logger": False} | options
    return L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=list(callbacks),
        **settings,
    )


def test_the_work_is_that_of_the_plan_and_unknown_devices_have_no_utilisation(tmp_path: Path) -> None:
    watch = ObserveCallback()
    module = ReconXModule(tiny_network(checkpointing=True), Stage.image_attention, OptimizerConfig(lr=1e-3))
    logger = TensorBoardLogger(str(tmp_path), name="run", version="")
    trainer_of(tmp_path, watch, logger=logger, log_every_n_steps=1).fit(module, NumberedBatches())
    meta_model = build_meta_model(tiny_network(), Stage.image_attention)
    assert watch._operations == count_step(meta_model, numbered_batch(0), structure=False).total
    assert logged(tmp_path / "run", "compute/tflops") and not logged(tmp_path / "run", "compute/utilisation")


def test_a_network_that_cannot_be_built_again_trains_without_a_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    network, watch = tiny_network(), ObserveCallback()
    network.text_tokens.init_args = None  # type: ignore[assignment]
    trainer = trainer_of(tmp_path, watch)
    trainer.fit(ReconXModule(network, Stage.structure), NumberedBatches())
    assert trainer.global_step == 2 and watch._operations == 0
    assert "cannot be counted" in caplog.text


def test_a_sharded_network_has_a_twin() -> None:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        network = tiny_network(checkpointing=False)
        apply_stage(network, Stage.structure)
        shard_network(network, init_device_mesh("cpu", (1,)))
        sharded = count_step(build_meta_model(network, Stage.structure), numbered_batch(0), structure=True)
    finally:
        distributed.destroy_process_group()
    assert sharded == count_step(build_meta_model(tiny_network(), Stage.structure), numbered_batch(0), structure=True)


def test_throughput_is_logged_once_for_each_window(tmp_path: Path) -> None:
    logger = TensorBoardLogger(str(tmp_path), name="run", version="")
    module = ReconXModule(tiny_network(), Stage.structure)
    trainer_of(tmp_path, ThroughputCallback(3), steps=8, logger=logger, log_every_n_steps=1).fit(
        module, NumberedBatches()
    )
    for tag in ("throughput/clips_per_second", "throughput/data_wait_share"):
        values = logged(tmp_path / "run", tag)
        assert sorted(values) == [2, 5] and values[2] != values[5]


def test_animations_have_a_limit() -> None:
    frames = torch.rand(31, 3, 64, 256)
    frames[:, 0] = torch.arange(31.0)[:, None, None]  # a frame's number is its red
    shown, fps = limited(frames, 24.0, count=16, side=128)
    assert shown.shape == (16, 3, 32, 128) and fps == 12.0
    assert torch.allclose(shown[:, 0, 0, 0], torch.arange(0.0, 31, 2), atol=1e-4)
    same, fps = limited(frames, 24.0, count=31, side=256)
    assert torch.equal(same, frames) and fps == 24.0


def test_the_callback_limits_what_it_writes(tmp_path: Path) -> None:
    write_procedural(tmp_path / "s", count=4, first_seed=0, frames=4, size=(32, 32), points=64, clips_per_shard=2)
    config = tiny_config(tmp_path, tmp_path / "s", "base", steps=1, checkpoint_every=1)
    content = yaml.safe_load(config.read_text())
    for callback in content["trainer"]["callbacks"]:
        if callback["class_path"].endswith("MediaCallback"):
            callback["init_args"] = {"clips": 2, "frames": 2, "side": 16}
    config.write_text(yaml.safe_dump(content))
    main(["fit", "-c", str(config)])
    events = EventAccumulator(str(tmp_path / "base")).Reload()
    tags = [tag for tag in events.Tags()["images"] if tag.startswith("generated/")]
    images = [Image.open(io.BytesIO(events.Images(tag)[0].encoded_image_string)) for tag in tags]
    assert [(image.size, image.n_frames) for image in images] == [((16, 8), 2)] * 2


def test_a_trace_of_a_few_steps_lies_in_the_run(tmp_path: Path) -> None:
    write_procedural(tmp_path / "s", count=4, first_seed=0, frames=4, size=(32, 32), points=64, clips_per_shard=2)
    config = tiny_config(tmp_path, tmp_path / "s", "base", steps=4, checkpoint_every=9)
    overlay = REPOSITORY / "configs" / "trainer" / "profile.yaml"
    settings = {"wait": 1, "warmup": 1, "active": 1}
    options = [f"--trainer.profiler.init_args.{name}={value}" for name, value in settings.items()]
    main(["fit", "-c", str(config), "-c", str(overlay), *options, "--trainer.limit_val_batches", "0"])
    (trace,) = (tmp_path / "base").glob("*.pt.trace.json")
    names = [event.get("name", "") for event in json.loads(trace.read_text())["traceEvents"]]
    assert sum("ProfilerStep" in name for name in names) >= 1 and any("addmm" in name for name in names)
    assert {name for name in names if "ProfilerStep" in name} == {
        "ProfilerStep#2"
    }  # after one that waits and one that warms up


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: ObserveCallback(ranges=0), "ranges"),
        (lambda: ObserveCallback(peak_tflops=0), "peak_tflops"),
        (lambda: ThroughputCallback(0), "every_n_steps"),
        (lambda: MediaCallback(side=0), "side"),
        (lambda: TraceProfiler(active=0), "active"),
    ],
)
def test_options_are_checked(wrong: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        wrong()
