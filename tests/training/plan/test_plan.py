"""A plan says what the run then is: its numbers are compared with real networks, optimizers and steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from frozen_encoders import write_encoders
from rank_program import numbered_batch, tiny_network
from tiny_run import tiny_config
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from reconx_pl.cli.train import PlanCLI, ReconXCLI, main
from reconx_pl.data.datamodule import ShardDataModule
from reconx_pl.data.procedural import write_procedural
from reconx_pl.diffusion.config import BLOCK_KINDS
from reconx_pl.diffusion.model import ReconXDiffusion
from reconx_pl.errors import ConfigurationError
from reconx_pl.training.module import ReconXModule
from reconx_pl.training.plan.meta_model import BatchShape, blank_batch, build_meta_model
from reconx_pl.training.plan.peaks import peak_flops
from reconx_pl.training.plan.plan import Plan, PlanOptions
from reconx_pl.training.plan.step_flops import count_step
from reconx_pl.training.plan.step_memory import held, kept_for_backward
from reconx_pl.training.stages import Stage, apply_stage, group_of


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_procedural(folder, count=6, first_seed=0, frames=4, size=(32, 32), points=64, clips_per_shard=2)
    return folder


def plan(folder: Path, shards: Path, *arguments: str) -> Plan:
    """Of the tiny stage 2."""
    config = tiny_config(folder, shards, "stage2", steps=6, checkpoint_every=3)
    return PlanCLI(["-c", str(config), *arguments]).plan


def test_parameters_and_rates_are_those_of_the_run(tmp_path: Path, shards: Path) -> None:
    multiplier = ("--model.optimizer.structure_multiplier", "5")
    planned = plan(tmp_path, shards, *multiplier)
    config = yaml.safe_load((tmp_path / "stage2.yaml").read_text())
    del config["ckpt_path"]
    (tmp_path / "bare.yaml").write_text(yaml.safe_dump(config))
    module = ReconXCLI(
        ReconXModule,
        ShardDataModule,
        args=["-c", str(tmp_path / "bare.yaml"), *multiplier],
        run=False,
        save_config_callback=None,
    ).model
    assert planned.trained == module.trained and planned.trained["structure"] > 0
    frozen = [p.numel() for p in module.network.parameters() if not p.requires_grad]
    assert sum(planned.frozen.values()) == sum(frozen) > 0
    module._trainer = type("Steps", (), {"estimated_stepping_batches": 6})()
    groups: Any = module.configure_optimizers()
    rates = {id(p): group["initial_lr"] for group in groups["optimizer"].param_groups for p in group["params"]}
    seen = {group_of(n): rates[id(p)] for n, p in module.network.named_parameters() if p.requires_grad}
    assert planned.rates == pytest.approx(seen) and len(set(seen.values())) == 2


def counted(network: ReconXDiffusion, structure: bool) -> int:
    network.train()
    # the counter does not know the processor's fused attention
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network.loss(numbered_batch(0), torch.Generator().manual_seed(0), structure=structure).loss.backward()
    network.zero_grad()
    return counter.get_total_flops()


@pytest.mark.parametrize("stage", list(Stage))
def test_the_operations_are_those_of_a_real_step(stage: Stage) -> None:
    network, structure = tiny_network(checkpointing=False), stage is Stage.structure
    apply_stage(network, stage)
    before = torch.get_rng_state()
    found = count_step(build_meta_model(network, stage), numbered_batch(0), structure, frozenset(BLOCK_KINDS))
    assert torch.equal(before, torch.get_rng_state())
    assert found.total == counted(network, structure)
    network.unet.set_activation_checkpointing(True)
    assert found.total + found.recomputed == counted(network, structure) > found.total
    assert 0 < found.unet < found.total and 0 < found.forward < found.total


def test_the_memory_is_that_of_real_tensors() -> None:
    network = tiny_network(checkpointing=False)
    apply_stage(network, Stage.structure)
    saved: dict[int, Any] = {}
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    network.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = network.loss(numbered_batch(0), torch.Generator().manual_seed(0)).loss
    meta_model = build_meta_model(network, Stage.structure)
    every, some = kept_for_backward(meta_model, numbered_batch(0), True, None, frozenset(BLOCK_KINDS))
    assert every.activations == pytest.approx(sum(s.nbytes() for s in saved.values()), rel=0.01)
    assert every.copies == 0 and some.activations < every.activations / 2 and 0 < some.block < every.activations
    half, _ = kept_for_backward(meta_model, numbered_batch(0), True, torch.bfloat16, frozenset(BLOCK_KINDS))
    assert 0.4 * every.activations < half.activations < 0.9 * every.activations
    trained = [p for p in network.parameters() if p.requires_grad]
    assert 0 < half.copies <= sum(2 * p.numel() for p in network.unet.parameters()) * 1.2

    loss.backward()
    optimizer = torch.optim.AdamW(trained)
    optimizer.step()
    real = held(network, average=True, half_encoders=False, ranks=1, sharded=False, mixed=False)
    assert real.weights == sum(p.nbytes for p in network.parameters())
    assert real.gradients == sum(p.grad.nbytes for p in trained if p.grad is not None) == real.average
    moments = [v for state in optimizer.state.values() for v in state.values() if v.ndim or v.numel() > 1]
    assert real.moments == pytest.approx(sum(v.nbytes for v in moments), rel=1e-3)  # gates are numbers themselves


def test_sharding_divides_what_it_divides(tmp_path: Path, shards: Path) -> None:
    fsdp = ("-c", str(Path(__file__).parents[3] / "configs" / "trainer" / "fsdp.yaml"))
    alone = plan(tmp_path, shards)
    ddp, parts = plan(tmp_path, shards, "--trainer.devices", "2"), plan(tmp_path, shards, *fsdp, "--trainer.devices=2")
    assert ddp.held.weights == alone.held.weights and ddp.held.exchange == ddp.held.gradients
    for name in ("weights", "gradients", "moments"):
        assert getattr(parts.held, name) == pytest.approx(getattr(alone.held, name) / 2, rel=1e-6)
    assert parts.sharded and 0 < parts.held.exchange < 4 * parts.held.weights


def test_batch_steps_and_epochs(tmp_path: Path, shards: Path) -> None:
    arguments = ("--trainer.accumulate_grad_batches=3", "--trainer.devices=3", "--data.batch_size=2")
    one, planned = plan(tmp_path, shards), plan(tmp_path, shards, *arguments, "--flops_per_second", "2e9")
    assert planned.effective_batch == 2 * 3 * 3
    assert (planned.clips, planned.shards, planned.steps) == (6, 3, 6)
    assert (planned.shape.frames, planned.shape.height, planned.shape.width) == (4, 32, 32)  # read from the shards
    assert planned.step_flops == 3 * planned.flops.total and planned.step_seconds == planned.step_flops / 2e9
    assert one.flops.total == pytest.approx(2 * planned.flops.total, rel=0.01)  # 4 clips
    assert one.rate is None  # of this processor nothing is known


def test_the_command_needs_neither_data_nor_weights(
    tmp_path: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny_config(tmp_path, shards, "base", steps=6, checkpoint_every=3)
    config = yaml.safe_load(path.read_text())
    config["model"]["network"]["init_args"] = write_encoders(tmp_path / "encoders")
    for file in (tmp_path / "encoders").glob("*.safetensors"):
        file.unlink()
    config["data"] |= {"train": str(tmp_path / "absent"), "val": None}
    path.write_text(yaml.safe_dump(config))
    size = ["--height", "32", "--width", "64", "--gpu", "A100", "--utilisation", "0.5"]
    main(["plan", "-c", str(path), *size, "--trainer.accumulate_grad_batches", "2"])
    text = capsys.readouterr().out
    assert "effective batch         8 clips = 4 a batch x 2 accumulated x 1 ranks" in text
    assert "4 frames of 32 x 64" in text and "absent is not there" in text
    assert "ASSUMPTION, not a measurement: 50 % of the data sheet's dense bfloat16 peak of A100" in text
    assert "frozen encoders, whole" in text and "epochs" not in text

    cached = PlanCLI(["-c", str(path), *size, "--data.cached", "true"]).plan
    frames = PlanCLI(["-c", str(path), *size]).plan
    assert cached.flops.unet == frames.flops.unet and cached.flops.forward < frames.flops.forward


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--gpu", "A100", "--flops_per_second", "1e12"), "not both"),
        (("--gpu", "abacus"), "known are"),
        (("--utilisation", "40"), "utilisation"),
        (("--height", "32"), "height and width"),
        (("--frames", "8"), "its first clip has 4 frames"),
        (("--trainer.precision", "64-true"), "precisions"),
        (("--trainer.strategy", "deepspeed"), "deepspeed"),
        (("--trainer.strategy", "reconx_pl.training.sharding.ShardedStrategy"), "inference_mode"),
        (("--trainer.devices", "4"), "3 shards cannot feed 4 ranks"),
        (("--data.points", "0"), "points cannot give"),
        (("--data.cached", "true"), "nothing to cache"),
        (("--data.batch_size", "0"), "batch_size"),
        (("--model.network.init_args.structure", "null"), "no plan can be made"),
    ],
)
def test_contradictions_are_refused(tmp_path: Path, shards: Path, arguments: tuple[str, ...], message: str) -> None:
    config = tiny_config(tmp_path, shards, "stage2", steps=6, checkpoint_every=3)
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        main(["plan", "-c", str(config), *arguments])


def test_peaks_by_name() -> None:
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12 and peak_flops("NVIDIA H100 80GB HBM3") == 989.4e12
    assert peak_flops("NVIDIA RTX A4000") is None  # not an A40


def test_default_rate_is_named() -> None:
    rate = PlanOptions().rate("auto")
    assert rate is not None and rate.flops == pytest.approx(0.4 * 989.4e12) and "40 %" in rate.origin
    with pytest.raises(ConfigurationError, match="clips of two frames"):
        blank_batch(tiny_network(), BatchShape(1, 1, 16, 16, 0))
