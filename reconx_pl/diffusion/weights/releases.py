"""The released models: where they are, and the settings that the base models were trained with."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from reconx_pl.diffusion.conditioning.structure import StructureEncoderConfig
from reconx_pl.diffusion.config import UNetConfig
from reconx_pl.diffusion.sampling.schedule import ScheduleConfig
from reconx_pl.errors import ConfigurationError

ReleaseName = Literal["dynamicrafter-512", "dynamicrafter-512-interp", "dynamicrafter-1024", "viewcrafter-25"]


@dataclass(frozen=True)
class HubFile:
    """A file of weights on the Hugging Face hub.

    Args:
        title: what people call it.
        repository: on the hub.
        saved_as: file name here; in the repository it is ``file``.
        licence: the licence tag of its page on the hub; None where the page had no tag.
        file: in the repository.
        notice: what whoever fetches it has to know.
        purpose: what it is for, in a few words.
        gigabytes: size of the file; None where it is not known.
    """

    title: str
    repository: str
    saved_as: str
    licence: str | None = field(default=None, kw_only=True)
    file: str = field(default="model.ckpt", kw_only=True)
    notice: str = field(default="", kw_only=True)
    purpose: str = field(default="", kw_only=True)
    gigabytes: float | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class Release(HubFile):
    """A released checkpoint of the base model: 2,520 tensors, 10.4 GB.

    Args:
        height: rows of the frames it was trained on, pixels.
        width: columns, pixels.
        rescale_end: where the dynamic rescale of the clean latent ends.
        default_fps: frames a second where none are given.
    """

    height: int
    width: int
    rescale_end: float
    default_fps: float
    gigabytes: float | None = field(default=10.4, kw_only=True)


RELEASES: dict[str, Release] = {
    "dynamicrafter-512": Release(
        "DynamiCrafter 512", "Doubiiu/DynamiCrafter_512", "dynamicrafter_512.ckpt", 320, 512, 0.7, 24.0,
        purpose="base model: one picture to a video",
    ),
    "dynamicrafter-512-interp": Release(
        "DynamiCrafter 512 for interpolation", "Doubiiu/DynamiCrafter_512_Interp", "dynamicrafter_512_interp.ckpt",
        320, 512, 0.7, 24.0,
        purpose="base model: configs/stage1.yaml starts from it",
    ),
    "dynamicrafter-1024": Release(
        "DynamiCrafter 1024", "Doubiiu/DynamiCrafter_1024", "dynamicrafter_1024.ckpt", 576, 1024, 0.3, 10.0,
        purpose="base model: one picture to a video, larger",
    ),
    "viewcrafter-25": Release(
        "ViewCrafter 25", "Drexubery/ViewCrafter_25", "viewcrafter_25.ckpt", 576, 1024, 0.3, 10.0,
        licence="apache-2.0",
        purpose="base model: a rendered point cloud to a video",
    ),
}  # fmt: skip

DUST3R_RELEASES: dict[str, HubFile] = {
    "dust3r-512-dpt": HubFile(
        "DUSt3R 512 DPT",
        "naver/DUSt3R_ViTLarge_BaseDecoder_512_dpt",
        "dust3r_512_dpt.safetensors",
        licence="cc-by-nc-sa-4.0",
        file="model.safetensors",
        notice="DUSt3R's weights are under CC BY-NC-SA 4.0: not for commercial use",
        purpose="points of photographs and their cameras",
        gigabytes=2.3,
    ),
}


def release_of(name: str) -> Release:
    """The release of the base model of that name.

    Raises:
        ConfigurationError: there is none; lists the names.
    """
    if name not in RELEASES:
        raise ConfigurationError(f"no release is called {name!r}; there are {', '.join(RELEASES)}")
    return RELEASES[name]


def release_config(name: str, frames: int) -> dict[str, Any]:
    """``class_path`` and ``init_args`` of the full-size network that a release's weights fit, with structure guidance.

    Args:
        name: of the release.
        frames: with queries of their own in the resampler.
    """
    release = release_of(name)
    return {
        "class_path": "reconx_pl.diffusion.model.ReconXDiffusion",
        "init_args": {
            "unet": asdict(UNetConfig.dynamicrafter_512(default_fps=release.default_fps)),
            "autoencoder": {
                "class_path": "reconx_pl.diffusion.autoencoder.KLAutoencoder",
                "init_args": {"random_init": True},
            },
            "image_tokens": {
                "class_path": "reconx_pl.diffusion.conditioning.image_tokens.ClipImageTokens",
                "init_args": {"random_init": True, "resampler": {"video_length": frames}},
            },
            "text_tokens": {
                "class_path": "reconx_pl.diffusion.conditioning.text_tokens.ClipTextTokens",
                "init_args": {"random_init": True},
            },
            "structure": asdict(StructureEncoderConfig()),
            "schedule": asdict(ScheduleConfig(rescale_end=release.rescale_end)),
        },
    }
