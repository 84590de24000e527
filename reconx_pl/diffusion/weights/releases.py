"""The released models: where they are, and the settings that the base models were trained with."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from reconx_pl.diffusion.conditioning.render_config import RenderConfig
from reconx_pl.diffusion.conditioning.structure import StructureEncoderConfig
from reconx_pl.diffusion.config import UNetConfig
from reconx_pl.diffusion.sampling.config import SamplingConfig
from reconx_pl.diffusion.sampling.schedule import ScheduleConfig
from reconx_pl.diffusion.weights.generation import ClipDefaults, GenerationDefaults
from reconx_pl.errors import ConfigurationError

ReleaseName = Literal[
    "dynamicrafter-512",
    "dynamicrafter-512-interp",
    "dynamicrafter-1024",
    "viewcrafter-25",
    "viewcrafter-25-sparse",
    "viewcrafter-25-512",
]
RELEASED_QUERIES = 16  # frames that the resampler of every release has queries for
PAPER_FRAMES = 32  # of a clip of ReconX, with queries of their own


@dataclass(frozen=True)
class HubFile:
    """A file of weights on the Hugging Face hub.

    Args:
        title: what people call it.
        repository: on the hub.
        saved_as: file name here; in the repository it is ``file``.
        licence: the licence tag of its page on the hub; None where the page had no tag, or was not read.
        file: in the repository.
        notice: what whoever fetches it has to know.
        purpose: what it is for, in a few words.
        gigabytes: size of the file; None where it is not known.
        bytes: the exact size, where others have recorded it; a file of another size is not fetched without its
            checksum.
        sha256_ends: how its SHA-256 begins and ends, where others have recorded that much; as for ``bytes``.
    """

    title: str
    repository: str
    saved_as: str
    licence: str | None = field(default=None, kw_only=True)
    file: str = field(default="model.ckpt", kw_only=True)
    notice: str = field(default="", kw_only=True)
    purpose: str = field(default="", kw_only=True)
    gigabytes: float | None = field(default=None, kw_only=True)
    bytes: int | None = field(default=None, kw_only=True)
    sha256_ends: tuple[str, str] = field(default=("", ""), kw_only=True)


@dataclass(frozen=True)
class Release(HubFile):
    """A released checkpoint of the base model: 2,520 tensors, 10.4 GB.

    Args:
        height: rows of the frames it was trained on, pixels.
        width: columns, pixels.
        rescale_end: where the dynamic rescale of the clean latent ends.
        default_fps: frames a second where none are given.
        frames: T of the clips it was trained on; None where every frame has queries of its own, whose number says it.
        fps: frame rate that it is always told; None where it was trained with many.
        prompt: of every clip; None leaves each its own caption.
        render: how it is guided by renders; None for a model that has never seen any, and gets a structure branch.
        shared_tokens: every frame sees the image tokens of all, so that any number of frames goes with 16 queries.
        sampling: as its authors sample it.
    """

    height: int
    width: int
    rescale_end: float
    default_fps: float
    frames: int | None = field(default=None, kw_only=True)
    fps: float | None = field(default=None, kw_only=True)
    prompt: str | None = field(default=None, kw_only=True)
    render: RenderConfig | None = field(default=None, kw_only=True)
    shared_tokens: bool = field(default=False, kw_only=True)
    sampling: SamplingConfig = field(default_factory=SamplingConfig, kw_only=True)
    gigabytes: float | None = field(default=10.4, kw_only=True)

    def queries(self, frames: int | None = None) -> int:
        """Frames that the resampler has queries for: of 32 as the paper, of ``frames``, or the 16 that frames share.

        Raises:
            ConfigurationError: another number is asked for, and the frames share them all.
        """
        if self.shared_tokens and frames not in (None, RELEASED_QUERIES):
            raise ConfigurationError(
                f"{self.title} has queries for {RELEASED_QUERIES} frames, and every frame of a clip sees the tokens of "
                "all of them, however many frames it has: leave frames out"
            )
        return RELEASED_QUERIES if self.shared_tokens else frames or PAPER_FRAMES


def _viewcrafter(
    title: str, repository: str, saved_as: str, height: int, width: int, rescale_end: float, **more: Any
) -> Release:
    """ViewCrafter (Yu et al. 2024): DynamiCrafter's network, guided by a rendered point cloud."""
    return Release(
        title, f"Drexubery/{repository}", saved_as, height, width, rescale_end, 10.0,
        frames=25,
        fps=10.0,
        prompt="Rotating view of a scene",
        # renders are as wide as the photographs that DUSt3R sees
        render=RenderConfig(mode="points", holes="black", channels="replace", shrink=width // 512),
        shared_tokens=True,
        sampling=SamplingConfig(
            num_inference_steps=50, eta=1.0, guidance_scale=7.5, guidance_rescale=0.7, last_step="corrected",
            spacing="trailing",
        ),
        **more,
    )  # fmt: skip


def _unread(repository: str) -> str:
    page = f"https://huggingface.co/Drexubery/{repository}"
    return f"the licence of these weights stands on {page}, which was not read here; ViewCrafter's code is Apache-2.0"


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
    "viewcrafter-25": _viewcrafter(
        "ViewCrafter 25", "ViewCrafter_25", "viewcrafter_25.ckpt", 576, 1024, 0.3,
        licence="apache-2.0",
        purpose="renders of one photograph's points to a video",
    ),
    "viewcrafter-25-sparse": _viewcrafter(
        "ViewCrafter 25 for sparse views", "ViewCrafter_25_sparse", "viewcrafter_25_sparse.ckpt", 576, 1024, 0.3,
        file="model_sparse.ckpt",
        notice=_unread("ViewCrafter_25_sparse"),
        purpose="renders of the points of two photographs and more to a video",
    ),
    "viewcrafter-25-512": _viewcrafter(
        "ViewCrafter 25, 512", "ViewCrafter_25_512", "viewcrafter_25_512.ckpt", 320, 512, 0.7,
        notice=_unread("ViewCrafter_25_512"),
        purpose="renders of points to a video, smaller",
    ),
}  # fmt: skip


def _da3(size: str, bytes: int, sha256_ends: tuple[str, str]) -> HubFile:
    return HubFile(
        f"Depth-Anything-3 {size}",
        f"depth-anything/DA3-{size}",
        f"da3_{size.lower()}.safetensors",
        file="model.safetensors",
        notice=f"the weights of DA3-{size} are under Apache-2.0 by their authors' README; a question about the data "
        "that they were trained on is open (docs/licences.md)",
        purpose="depth of photographs and their cameras",
        gigabytes=bytes / 1e9,
        bytes=bytes,
        sha256_ends=sha256_ends,
    )


GEOMETRY_RELEASES: dict[str, HubFile] = {
    "da3-base": _da3("BASE", 541_518_028, ("e01067dc", "78b5")),
    "da3-small": _da3("SMALL", 137_248_940, ("364492e3", "efcf")),
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


def release_config(name: str, frames: int | None = None) -> dict[str, Any]:
    """``class_path`` and ``init_args`` of the full-size network that a release's weights fit.

    It is guided as the release was trained to be, by renders, or else by structure, whose branch is born closed.

    Args:
        name: of the release.
        frames: with queries of their own in the resampler; None takes 32 as the paper, or leaves those that all frames
            share as they are.

    Raises:
        ConfigurationError: no such release, or another number of shared queries.
    """
    release = release_of(name)
    structured = release.render is None
    image_tokens: dict[str, Any] = {"random_init": True, "resampler": {"video_length": release.queries(frames)}}
    arguments: dict[str, Any] = {
        "unet": asdict(UNetConfig.dynamicrafter_512(default_fps=release.default_fps, structure_guidance=structured)),
        "autoencoder": {
            "class_path": "reconx_pl.diffusion.autoencoder.KLAutoencoder",
            "init_args": {"random_init": True},
        },
        "image_tokens": {
            "class_path": "reconx_pl.diffusion.conditioning.image_tokens.ClipImageTokens",
            "init_args": {**image_tokens, "shared": release.shared_tokens},
        },
        "text_tokens": {
            "class_path": "reconx_pl.diffusion.conditioning.text_tokens.ClipTextTokens",
            "init_args": {"random_init": True},
        },
        "structure": asdict(StructureEncoderConfig()) if structured else None,
        "schedule": asdict(ScheduleConfig(rescale_end=release.rescale_end)),
        "guidance": "structure" if structured else "render",
        "render": None if release.render is None else asdict(release.render),
    }
    if release.prompt is not None:
        arguments |= {"caption": release.prompt, "captions": "fixed"}
    return {"class_path": "reconx_pl.diffusion.model.ReconXDiffusion", "init_args": arguments}


def release_defaults(name: str, frames: int | None = None) -> GenerationDefaults:
    """What a release generates where nothing else is said; arguments and errors as for ``release_config``."""
    release = release_of(name)
    queries = release.queries(frames)
    clip = ClipDefaults(release.frames or queries, release.height, release.width, release.fps)
    return GenerationDefaults(name, clip, release.sampling)
