"""One whole training step against the original: conditions with drops, noising, the U-Net, the loss, every gradient.

The kit has the original's frozen encoders replaced by stubs, which are built here as its description says. The rest is
our own ``ReconXDiffusion.loss`` from frames to loss, with the kit's random numbers in the place of drawn ones.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from golden_kits import golden_folder, golden_kits
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from reconx_pl.diffusion.autoencoder import KLAutoencoder, KLAutoencoderConfig
from reconx_pl.diffusion.conditioning.conditions import Conditions
from reconx_pl.diffusion.conditioning.dropout import DropoutConfig, Dropped, dropped_at
from reconx_pl.diffusion.conditioning.image_tokens import ClipImageTokens, ClipVisionConfig
from reconx_pl.diffusion.conditioning.resampler import ResamplerConfig
from reconx_pl.diffusion.conditioning.structure import StructureEncoderConfig
from reconx_pl.diffusion.config import UNetConfig
from reconx_pl.diffusion.model import ReconXDiffusion, RecordedDraws
from reconx_pl.diffusion.sampling.objective import DiffusionLoss
from reconx_pl.diffusion.sampling.schedule import ScheduleConfig
from reconx_pl.diffusion.weights import from_official_name, load_official_unet, load_unet_weights
from reconx_pl.types import ClipBatch

logger = logging.getLogger(__name__)  # figures: pytest --log-cli-level=INFO

KITS = golden_kits("train_step_*.json")
RESAMPLER = "image_proj_model."
pytestmark = pytest.mark.skipif(not KITS, reason="needs the golden kits train_step_*.json")
each_kit = pytest.mark.parametrize("path", KITS, ids=lambda path: path.stem)


class StubText(nn.Module):
    """The kit's embeddings, looked up by caption."""

    def __init__(self, captions: Sequence[str], tokens: Tensor, empty: Tensor) -> None:
        super().__init__()
        self.table, self.empty = dict(zip(captions, tokens, strict=True)), empty

    def forward(self, captions: Sequence[str]) -> Tensor:
        return torch.stack([self.table[caption] for caption in captions])

    def null(self) -> Tensor:
        return self.empty[None]


class StubEncoder(nn.Module):
    """Adaptive average pooling of a frame in [-1, 1] to 2 x 5 cells, each times a matrix [3, E]."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, images: Tensor) -> Tensor:
        cells = functional.adaptive_avg_pool2d(images * 2 - 1, (2, 5))
        return cells.flatten(2).transpose(1, 2) @ self.weight


@dataclass
class Step:
    """A training step of ours on the kit's batch, and what was seen on the way."""

    info: dict
    kit: dict[str, Tensor]
    network: ReconXDiffusion
    batch: ClipBatch
    dropped: Dropped
    conditions: Conditions
    noisy: Tensor  # [B, C, T, h, w]
    prediction: Tensor
    result: DiffusionLoss


def own_file(weights: dict, part: str) -> Path:
    folder = golden_folder()
    assert folder is not None
    return folder / weights[part].split(",")[0]


def build(info: dict, kit: dict[str, Tensor], structure: bool = False) -> ReconXDiffusion:
    """The tiny network of the kit; with ``structure`` also our structure branch, gates closed as at birth."""
    official, vae, weights = info["unet_config"], info["vae_ddconfig"], info["weights"]
    same = (
        *("in_channels", "out_channels", "model_channels", "channel_mult", "num_res_blocks", "num_head_channels"),
        *("transformer_depth", "context_dim", "dropout"),
    )
    config = UNetConfig(
        **{name: official[name] for name in same},
        attention_strides=official["attention_resolutions"],
        default_fps=official["default_fs"],
        image_gate=official["image_cross_attention_scale_learnable"],
        structure_guidance=structure,
    )
    autoencoder = KLAutoencoder(
        KLAutoencoderConfig(
            block_out_channels=tuple(vae["ch"] * m for m in vae["ch_mult"]),
            layers_per_block=vae["num_res_blocks"],
            latent_channels=vae["z_channels"],
        ),
        weights=own_file(weights, "vae"),
    )
    resampler = ResamplerConfig(**info["resampler_config"])
    vision = ClipVisionConfig(image_size=28, width=resampler.embedding_dim, layers=1, head_width=8, embed_dim=8)
    image_tokens = ClipImageTokens(vision, resampler, random_init=True)
    image_tokens.encoder = StubEncoder(kit["image_stub_weight"])
    state = {key[len(RESAMPLER) :]: value for key, value in kit.items() if key.startswith(RESAMPLER)}
    image_tokens.resampler.load_state_dict(state, strict=True)
    width = config.context_dim
    network = ReconXDiffusion(
        config,
        autoencoder,
        image_tokens,
        StubText(info["captions"], kit["text_emb"], kit["text_null"]),
        structure=StructureEncoderConfig(points=32, tokens=4, octaves=2, width=width) if structure else None,
        schedule=ScheduleConfig(),
        dropout=DropoutConfig(probability=info["uncond_prob"]),
    )
    unet = load_official_unet(load_file(own_file(weights, "unet")), "the kit")
    gated = official["image_cross_attention_scale_learnable"]
    unet = {key: value for key, value in unet.items() if gated or not key.endswith(".attn2.alpha")}
    load_unet_weights(network.unet, unet, "the kit")
    return network.eval()


def take_step(path: Path, structure: bool = False, structure_r: float = 1.0) -> Step:
    info, kit = json.loads(path.read_text(encoding="utf-8")), load_file(path.with_suffix(".safetensors"))
    network = build(info, kit, structure)
    count = len(info["captions"])
    frames = kit["video"].transpose(1, 2)  # [B, T, 3, H, W] in [-1, 1]
    batch = ClipBatch(
        key=[str(number) for number in range(count)],
        caption=info["captions"],
        frames=(frames + 1) / 2 * 255,
        world_to_camera=torch.eye(4).expand(*frames.shape[:2], 4, 4),
        intrinsics=torch.eye(3).expand(*frames.shape[:2], 3, 3),
        fps=kit["fps"].float(),
        points=torch.randn(count, 32, 3, generator=torch.Generator().manual_seed(0)),
    )
    r = kit["random_num"]
    dropped = dropped_at(r, torch.full_like(r, structure_r), network.dropout)
    seen: dict[str, Tensor] = {}
    network.unet.register_forward_hook(lambda module, args, out: seen.update(input=args[0], out=out))
    made: list[Conditions] = []
    make = network.conditions
    network.conditions = lambda *args: made.append(make(*args)) or made[-1]
    draws = RecordedDraws(dropped, posterior=kit["posterior_noise"], t=kit["t"], noise=kit["noise"])
    result = network.loss(batch, None, structure=structure, recorded=draws)
    result.loss.backward()
    channels = kit["noise"].shape[1]
    return Step(info, kit, network, batch, dropped, made[0], seen["input"][:, :channels], seen["out"], result)


plain_step = cache(take_step)


def context(conditions: Conditions) -> Tensor:
    """Text and image tokens in one row, as the original hands them on."""
    return torch.cat([conditions.text_tokens, conditions.image_tokens.flatten(1, 2)], dim=1)


def worst(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape
    return float((actual.detach() - expected).abs().max())


def trained(step: Step) -> dict[str, Tensor]:
    """Gradients by official name, without the structure branch."""
    unet = {f"unet.{name}": name for name, _ in step.network.unet.named_parameters()}
    found = {}
    for name, parameter in step.network.named_parameters():
        if parameter.grad is not None and "structure" not in name:
            found[name] = parameter.grad
    assert set(unet) - set(found) <= {name for name in unet if "structure" in name}
    return found


def own_name(official: str) -> str:
    if official.startswith(RESAMPLER):
        return f"image_tokens.resampler.{official[len(RESAMPLER) :]}"
    return f"unet.{from_official_name(official)}"


@each_kit
def test_conditions(path: Path) -> None:
    step = plain_step(path)
    kit, conditions = step.kit, step.conditions
    assert 0 < int(step.dropped.text.sum()) < len(conditions) and 0 < int(step.dropped.image.sum()) < len(conditions)
    errors = {
        "concat": worst(conditions.concat_latents, kit["interp.c_concat"]),
        "context": worst(context(conditions), kit["interp.c_crossattn"]),
        "fps": worst(conditions.fps, kit["fs"].float()),
    }
    with torch.no_grad():
        z = step.network.encode(step.batch["frames"] / 255, noise=kit["posterior_noise"])
        whole = step.network.conditions(
            step.batch["frames"][:, 0] / 255, z[:, :, 0], z[:, :, -1], step.batch["fps"], z.shape[2], None,
            step.batch["caption"], None,
        )  # fmt: skip
    errors |= {"z": worst(z, kit["z"]), "context without drops": worst(context(whole), kit["nodrop.c_crossattn"])}
    logger.info(f"{path.stem}: largest errors {errors}")
    # Of the context's largest entry (3.8): absolutely, the kit's own resampler is 2.6e-6 away from float64.
    largest = float(kit["interp.c_crossattn"].abs().max())
    for name, error in errors.items():
        assert error <= 2e-6 * (largest if "context" in name else 1), errors


@each_kit
def test_noising_prediction_and_loss(path: Path) -> None:
    step = plain_step(path)
    errors = {
        "x_noisy": worst(step.noisy, step.kit["step.x_noisy"]),
        "unet_out": worst(step.prediction, step.kit["step.unet_out"]),
        "loss, relative": abs(step.result.loss.item() / step.kit["step.loss"].item() - 1),
    }
    logger.info(f"{path.stem}: largest errors {errors}")
    assert errors["x_noisy"] <= 5e-6 and errors["unet_out"] <= 1e-4 and errors["loss, relative"] <= 1e-5, errors
    assert float(step.result.loss) == pytest.approx(step.info["loss_dict"]["val/loss"], rel=1e-5)


@each_kit
def test_gradients(path: Path) -> None:
    step = plain_step(path)
    found = trained(step)
    norms = {own_name(name): norm for name, norm in step.info["grad_norms"].items()}
    assert norms.keys() == found.keys()  # the frozen encoders get none, everything else gets one
    unet_kit = json.loads(own_file(step.info["weights"], "unet").with_suffix(".json").read_text(encoding="utf-8"))
    # parameters that a GroupNorm with one channel a group cancels have gradients of rounding errors
    cancelled = {own_name(name) for name in unet_kit["insensitive_parameters"]}
    ratios = {
        name: abs(float(found[name].norm()) - norm) / norm for name, norm in norms.items() if name not in cancelled
    }
    prefix = "step.grad."
    stored = {key.removeprefix(prefix): value for key, value in step.kit.items() if key.startswith(prefix)}
    assert len(stored) >= 4 and len(ratios) > 0.9 * len(norms)
    errors = {name: worst(found[own_name(name)], value) / float(value.abs().max()) for name, value in stored.items()}
    logger.info(
        f"{path.stem}: {len(ratios)} of {len(norms)} gradient norms, largest error {max(ratios.values()):.2e}; "
        f"{len(stored)} gradients, largest error {max(errors.values()):.2e} of the largest entry"
    )
    assert max(errors.values()) <= 1e-3, errors
    assert max(ratios.values()) <= 1e-3, max(ratios, key=lambda name: ratios[name])
    assert all(float(found[name].norm()) <= 1e-5 * max(norms.values()) for name in cancelled & found.keys())


@each_kit
def test_the_structure_branch_is_born_closed(path: Path) -> None:
    """With the structure condition of a new branch the step is the original's, kept or dropped."""
    for structure_r in (0.0, 1.0):
        step = take_step(path, structure=True, structure_r=structure_r)
        assert step.conditions.structure_tokens is not None and step.conditions.structure_keep is not None
        assert step.conditions.structure_keep.all() == (structure_r == 1.0)
        assert worst(step.prediction, step.kit["step.unet_out"]) <= 1e-4
        assert float(step.result.loss) == pytest.approx(float(step.kit["step.loss"]), rel=1e-5)
        gates = [p.grad for name, p in step.network.named_parameters() if name.endswith("structure_gate")]
        # closed, but not deaf: the gates learn where the condition is kept
        assert gates and all(bool(gate.any()) == (structure_r == 1.0) for gate in gates)
