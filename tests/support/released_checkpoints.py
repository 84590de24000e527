"""Small checkpoints in the complete layout of the released base models, and the small network that they fit."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from reconx_pl.diffusion.autoencoder import KLAutoencoder, KLAutoencoderConfig
from reconx_pl.diffusion.conditioning.image_tokens import ClipImageTokens, ClipVisionConfig
from reconx_pl.diffusion.conditioning.resampler import ResamplerConfig
from reconx_pl.diffusion.conditioning.structure import StructureEncoderConfig
from reconx_pl.diffusion.conditioning.text_tokens import ClipTextConfig, ClipTextTokens
from reconx_pl.diffusion.config import UNetConfig
from reconx_pl.diffusion.model import ReconXDiffusion
from reconx_pl.diffusion.sampling.schedule import ScheduleConfig
from reconx_pl.diffusion.weights import to_official_unet
from reconx_pl.diffusion.weights.released import UNUSED
from reconx_pl.diffusion.weights.schedule_buffers import official_buffers


def tiny(frames: int, seed: int, *, structure: bool = True, schedule: ScheduleConfig | None = None) -> ReconXDiffusion:
    """The classes of the full-size model, small, with random frozen encoders."""
    torch.manual_seed(seed)
    vision = ClipVisionConfig(image_size=28, patch_size=14, width=32, layers=1, head_width=16, embed_dim=16)
    resampler = ResamplerConfig(
        dim=32, depth=1, dim_head=16, heads=2, embedding_dim=32, output_dim=32, video_length=frames
    )
    text = ClipTextConfig(width=32, heads=2, layers=2, embed_dim=16)
    unet = UNetConfig(
        model_channels=64,
        channel_mult=(1,),
        num_res_blocks=1,
        attention_strides=(1,),
        context_dim=32,
        structure_guidance=structure,
    )
    return ReconXDiffusion(
        unet,
        KLAutoencoder(KLAutoencoderConfig(block_out_channels=(32, 32, 64)), random_init=True),
        ClipImageTokens(vision, resampler, random_init=True),
        ClipTextTokens(text, random_init=True),
        StructureEncoderConfig(points=16, tokens=2, width=32) if structure else None,
        schedule,
    )


def schedule_buffers(config: ScheduleConfig) -> dict[str, Tensor]:
    """The 13 stored buffers in float32; ``scale_arr`` with its unreachable tail."""
    buffers = {name: value.float() for name, value in official_buffers(config).items()}
    if "scale_arr" in buffers:
        buffers["scale_arr"] = torch.cat([buffers["scale_arr"], buffers["scale_arr"][-1:].expand(config.rescale_steps)])
    return buffers


def released(network: ReconXDiffusion) -> dict[str, Tensor]:
    """The complete state dict under the official names, as distributed."""
    state = schedule_buffers(network.schedule.config) | to_official_unet(network.unet.state_dict())
    state |= _compvis_names(network.autoencoder.vae.state_dict(), len(network.autoencoder.config.block_out_channels))
    frozen_encoders = {
        "image_proj_model.": network.image_tokens.resampler,
        "embedder.model.visual.": network.image_tokens.encoder.visual,
        "cond_stage_model.model.": network.text_tokens.text,
    }
    for prefix, module in frozen_encoders.items():
        state |= {prefix + name: tensor for name, tensor in module.state_dict().items()}
    state |= {name: torch.full((2,), 0.5) for name in UNUSED}
    return {name: tensor.clone() for name, tensor in state.items()}


def deepspeed(state: dict[str, Tensor]) -> dict[str, object]:
    """The same in the form that DeepSpeed writes."""
    return {"module": {f"_forward_module.{name}": tensor for name, tensor in state.items()}, "global_steps": 3}


def _compvis_names(state: dict[str, Tensor], levels: int) -> dict[str, Tensor]:
    """diffusers' names of the autoencoder to the original ones."""
    attention = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    renamed = {}
    for key, value in state.items():
        name = re.sub(r"down_blocks\.(\d+)", r"down.\1", key)
        name = re.sub(r"up_blocks\.(\d+)", lambda match: f"up.{levels - 1 - int(match[1])}", name)
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}", name)
        name = name.replace(".resnets.", ".block.").replace("downsamplers.0", "downsample")
        name = name.replace("upsamplers.0", "upsample").replace("conv_shortcut", "nin_shortcut")
        name = name.replace("conv_norm_out", "norm_out")
        if "mid_block.attentions.0." in name:
            before, after = name.split("mid_block.attentions.0.")
            part, _, kind = after.rpartition(".")
            name = f"{before}mid.attn_1.{attention[part]}.{kind}"
            value = value[:, :, None, None] if value.ndim == 2 else value
        renamed[f"first_stage_model.{name}"] = value
    return renamed
