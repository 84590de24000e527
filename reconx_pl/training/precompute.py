"""What frozen networks make of clips, computed once and kept in the shards: ``reconx cache``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import ArgumentError, ArgumentParser
from torch import Tensor, nn

from reconx_pl.data.shards.caches import cache_name
from reconx_pl.data.shards.clouds import CloudPrecomputer, Poses
from reconx_pl.data.shards.guidance_members import encode_splats
from reconx_pl.data.shards.precompute import Precomputer, PrecomputeReport, precompute_shards
from reconx_pl.data.shards.schema import encode_cache
from reconx_pl.diffusion.autoencoder import PosteriorAutoencoder
from reconx_pl.diffusion.cached_inputs import cached_inputs
from reconx_pl.diffusion.conditioning.image_tokens import ClipImageTokens, ClipVisionEncoder
from reconx_pl.diffusion.conditioning.render_config import RenderConfig
from reconx_pl.diffusion.render_sources import depth_views, known_views
from reconx_pl.diffusion.splat_renders import ShortFits, seen_by, splat_renders, splats_fingerprint
from reconx_pl.errors import ConfigurationError
from reconx_pl.files.configs import read_config
from reconx_pl.files.ranks import process_place
from reconx_pl.files.tensors import to_bytes
from reconx_pl.geometry.estimators.base import PointMapEstimator
from reconx_pl.types import Clip, Progress

Precision = Literal["32", "bf16"]


class MomentsPrecomputer:
    """Mean and log variance [T, 2 C, h, w] of every frame's posterior.

    Args:
        autoencoder: splits the frames into chunks by itself.
        device: of its weights.
        precision: "bf16" computes in bfloat16 autocast.
    """

    def __init__(self, autoencoder: PosteriorAutoencoder, device: torch.device, precision: Precision = "32") -> None:
        self.autoencoder, self.device, self.precision = autoencoder, device, precision
        self.names = (cache_name("moments", autoencoder.fingerprint()),)

    @torch.inference_mode()
    def __call__(self, clip: Clip) -> dict[str, bytes]:
        frames = clip.images.to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            mean, log_variance = self.autoencoder.moments(frames).float().chunk(2, dim=1)
        # no sample is drawn from outside this range either, and float16 can hold it
        moments = torch.cat([mean, log_variance.clamp(-30, 20)], dim=1)
        return _members(self.names[0], moments, clip)


class FirstFramePrecomputer:
    """Tokens [M, D] of the first frame from the frozen image encoder.

    Args:
        As for :class:`MomentsPrecomputer`.
    """

    def __init__(self, encoder: ClipVisionEncoder, device: torch.device, precision: Precision = "32") -> None:
        self.encoder, self.device, self.precision = encoder, device, precision
        self.names = (cache_name("clip", encoder.fingerprint()),)

    @torch.inference_mode()
    def __call__(self, clip: Clip) -> dict[str, bytes]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            tokens = self.encoder(clip.images[:1].to(self.device))
        return _members(self.names[0], tokens[0].float(), clip)


class SplatsPrecomputer:
    """Colour and coverage [T, 4, H, W] of a short fit of the first and the last frame, in the cameras of all.

    Args:
        config: steps of the fit, and which depth is known.
        device: where it runs.
    """

    def __init__(self, config: RenderConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self.names = (cache_name("splats", splats_fingerprint(config.splat_steps, config.min_confidence)),)

    def __call__(self, clip: Clip) -> dict[str, bytes]:
        """The member of one clip.

        Raises:
            BadSceneError: it has no depth, or none that is confident enough.
        """
        views = known_views(depth_views(clip), self.config, clip.key).to(self.device)
        fitted = ShortFits().of(views, clip.cloud, self.config.splat_steps)
        color, coverage = splat_renders(seen_by(clip.cameras.to(self.device), fitted))
        values = to_bytes(torch.cat([color, coverage[:, None]], dim=1).cpu())
        return {self.names[0]: encode_splats(values, f"clip {clip.key}: {self.names[0]}")}


def _members(name: str, values: Tensor, clip: Clip) -> dict[str, bytes]:
    return {name: encode_cache(values, f"clip {clip.key}: {name}")}


def encoder_precomputers(
    autoencoder: nn.Module, image_tokens: nn.Module, device: torch.device, precision: Precision = "32"
) -> list[Precomputer]:
    """One precomputer for each frozen encoder that the two parts have; they are moved to the device."""
    cached_inputs(autoencoder, image_tokens)  # refuses two parts without any
    precomputers: list[Precomputer] = []
    if isinstance(autoencoder, PosteriorAutoencoder):
        precomputers.append(MomentsPrecomputer(autoencoder.to(device), device, precision))
    if isinstance(image_tokens, ClipImageTokens):
        precomputers.append(FirstFramePrecomputer(image_tokens.encoder.to(device), device, precision))
    return precomputers


def frozen_parts(config: Path) -> tuple[nn.Module, nn.Module]:
    """Autoencoder and image tokens of a training configuration; nothing else of the network is built.

    Args:
        config: YAML of ``train.py``, such as ``configs/stage1.yaml`` or a run's ``config.yaml``; see ``read_config``.

    Raises:
        ConfigurationError: no such file, or no such parts in it.
        MissingWeightsError, BadWeightsError: from the parts.
    """
    parts = ("autoencoder", "image_tokens")
    content = read_config(config)
    try:
        network = content["model"]["network"]
        described = {part: network.get("init_args", network)[part] for part in parts}
    except (LookupError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f"{config}: has no model.network with an autoencoder and image_tokens ({error!r}); give the YAML file of a "
            "training run"
        ) from error
    parser = ArgumentParser(exit_on_error=False)
    for part in parts:
        parser.add_argument(f"--{part}", type=nn.Module, required=True)
    try:
        parsed = parser.parse_object(described)
    except ArgumentError as error:
        raise ConfigurationError(f"{config}: {error}") from error
    built: Any = parser.instantiate_classes(parsed)
    return built.autoencoder, built.image_tokens


def render_config(config: Path) -> RenderConfig | None:
    """How the network of a training configuration is guided by renders; None where it is not.

    Raises:
        ConfigurationError: options that do not exist, or contradict each other.
    """
    network = read_config(config).get("model", {}).get("network", {})
    stated = network.get("init_args", network).get("render")
    if stated is None:
        return None
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(RenderConfig, "render")
    try:
        return parser.instantiate_classes(parser.parse_object({"render": stated})).render
    except ArgumentError as error:
        raise ConfigurationError(f"{config}: {error}") from error


def config_precomputers(config: Path, device: torch.device, precision: Precision) -> list[Precomputer]:
    """What a training configuration reads from caches: of its frozen encoders, and renders of short fits.

    Raises:
        ConfigurationError: it has neither.
    """
    render = render_config(config)
    splats: list[Precomputer] = []
    if render is not None and "splats" in render.sources:
        splats.append(SplatsPrecomputer(render, device))
    parts = frozen_parts(config)
    if splats and not isinstance(parts[0], PosteriorAutoencoder) and not isinstance(parts[1], ClipImageTokens):
        return splats
    return encoder_precomputers(*parts, device, precision) + splats


def cache_shards(
    shards: Path,
    out: Path,
    config: Path | None = None,
    estimator: PointMapEstimator | None = None,
    points: int = 16384,
    min_confidence: float = 1.0,
    poses: Poses = "dataset",
    precision: Precision = "32",
    device: str | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    progress: Progress | None = None,
) -> PrecomputeReport:
    """Copy shards into a new folder, with clouds of every clip, and what frozen encoders and short fits make of it.

    Run it again to go on after an interruption. Several processes share the work by shards: a Slurm array, torchrun, or
    rank and world_size by hand; the manifest is written when the last shard is there.

    Args:
        shards: folder of the packed shards.
        out: folder of the new ones.
        config: YAML file of a training run, whose autoencoder and image tokens are used; where its network is guided by
            renders of a short fit (render.sources splats), these are made too. None runs neither.
        estimator: makes depth, confidence and cloud of the first and last frame, such as
            reconx_pl.geometry.dust3r.pretrained.PretrainedDust3r; None leaves those of the clips.
        points: most points of a cloud.
        min_confidence: of the points of a cloud, on DUSt3R's scale.
        poses: "dataset" hands the clip's poses to the estimator, "estimated" lets it find its own and aligns both.
        precision: of the frozen encoders: bf16 computes in bfloat16 autocast; what is stored is float16 either way.
        device: torch device of the frozen encoders; by default this process's GPU if there is one.
        rank: number of this process; by default of the Slurm array, else torchrun's, else 0.
        world_size: number of processes; given with rank.
        progress: see ``precompute_shards``.

    Raises:
        ConfigurationError: nothing to make; ``out`` was made with other weights or settings.
        BadDataError: damaged shards.
        MissingWeightsError, BadWeightsError: from the frozen encoders or the estimator.
    """
    place = process_place(rank, world_size)
    precomputers: list[Precomputer] = []
    settings: dict[str, Any] = {}
    if estimator is not None:
        clouds = CloudPrecomputer(estimator, points, min_confidence, poses)
        precomputers.append(clouds)
        settings["clouds"] = clouds.settings
    if config is not None:
        local = os.environ.get("LOCAL_RANK", "0")
        chosen = torch.device(device or (f"cuda:{local}" if torch.cuda.is_available() else "cpu"))
        precomputers += config_precomputers(config, chosen, precision)
        settings["precision"] = precision
    if not precomputers:
        raise ConfigurationError(
            "nothing to make: give --config for the frozen encoders' outputs, --estimator for clouds, or both"
        )
    cudnn = torch.backends.cudnn
    with cudnn.flags(enabled=cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=cudnn.allow_tf32):
        return precompute_shards(shards, out, precomputers, settings, *place, progress=progress)
