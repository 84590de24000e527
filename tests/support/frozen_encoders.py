"""Small frozen encoders with weights files, as a training configuration describes them, for tests of caches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file

from reconx_pl.diffusion.autoencoder import KLAutoencoder, KLAutoencoderConfig
from reconx_pl.diffusion.conditioning.image_tokens import ClipVisionConfig, ClipVisionEncoder
from reconx_pl.diffusion.conditioning.text_tokens import ClipTextConfig, ClipTextTokens
from reconx_pl.diffusion.config import UNetConfig
from reconx_pl.diffusion.model import ReconXDiffusion
from reconx_pl.training.precompute import frozen_parts

VAE = {"block_out_channels": [32, 32, 32], "layers_per_block": 1}
VISION = {"image_size": 28, "patch_size": 14, "width": 40, "layers": 2, "head_width": 10, "embed_dim": 24}
TEXT = {"width": 32, "heads": 4, "layers": 3, "embed_dim": 24}
RESAMPLER = {
    **{"dim": 16, "depth": 1, "dim_head": 8, "heads": 2, "num_queries": 3},
    **{"embedding_dim": 40, "output_dim": 32, "video_length": 4},
}
UNET = {
    **{"in_channels": 8, "out_channels": 4, "model_channels": 32, "channel_mult": [1, 2], "num_res_blocks": 1},
    **{"attention_strides": [1, 2], "num_head_channels": 8, "context_dim": 32, "dropout": 0.0},
    "structure_guidance": False,
}


def write_encoders(folder: Path, seed: int = 0) -> dict[str, Any]:
    """Weights files of an autoencoder, an image and a text encoder; the network's YAML section that reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        modules = {
            "vae": KLAutoencoder(KLAutoencoderConfig(**VAE), random_init=True).vae,
            "vision": ClipVisionEncoder(ClipVisionConfig(**VISION), random_init=True).visual,
            "text": ClipTextTokens(ClipTextConfig(**TEXT), random_init=True).text,
        }
    files = {name: str(folder / f"{name}.safetensors") for name in modules}
    for name, module in modules.items():
        save_file({key: value.contiguous() for key, value in module.state_dict().items()}, files[name])
    return {
        "unet": UNET,
        "autoencoder": {
            "class_path": "reconx_pl.diffusion.autoencoder.KLAutoencoder",
            "init_args": {"config": VAE, "weights": files["vae"]},
        },
        "image_tokens": {
            "class_path": "reconx_pl.diffusion.conditioning.image_tokens.ClipImageTokens",
            "init_args": {"vision": VISION, "resampler": RESAMPLER, "weights": files["vision"]},
        },
        "text_tokens": {
            "class_path": "reconx_pl.diffusion.conditioning.text_tokens.ClipTextTokens",
            "init_args": {"config": TEXT, "weights": files["text"]},
        },
    }


def write_config(folder: Path, seed: int = 0) -> Path:
    """A configuration with these frozen encoders, as far as ``reconx cache`` looks at it."""
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"model": {"network": {"init_args": write_encoders(folder, seed)}}}))
    return path


def build_network(folder: Path, seed: int = 0, **options: Any) -> ReconXDiffusion:
    """The network of :func:`write_encoders`."""
    autoencoder, image_tokens = frozen_parts(write_config(folder, seed))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        unet = UNetConfig(**UNET)
        text = ClipTextTokens(ClipTextConfig(**TEXT), weights=folder / "text.safetensors")
        image_tokens.resampler.load_state_dict(
            {k: torch.randn_like(v) * 0.2 for k, v in image_tokens.resampler.state_dict().items()}
        )
        network = ReconXDiffusion(unet, autoencoder, image_tokens, text, **options)
        for parameter in network.unet.parameters():  # its last layer is born zero, and would hide everything
            torch.nn.init.normal_(parameter, std=0.05)
    return network.eval()
