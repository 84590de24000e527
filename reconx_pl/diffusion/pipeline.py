"""Generates the frames between two views, and after them, with a trained model (ReconX, IV-D, V-D)."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from reconx_pl.devices import faster_precision
from reconx_pl.diffusion.conditioning.render_latents import COVERED
from reconx_pl.diffusion.conditioning.structure import structure_points
from reconx_pl.diffusion.model import ReconXDiffusion
from reconx_pl.diffusion.offload import resident
from reconx_pl.diffusion.render_sources import clip_renders
from reconx_pl.diffusion.sampling.config import SamplingConfig
from reconx_pl.diffusion.sampling.extrapolation import seen_numbers
from reconx_pl.diffusion.sampling.guidance import Guidance
from reconx_pl.diffusion.sampling.residual import kept_renders
from reconx_pl.diffusion.sampling.solvers import make_sampler
from reconx_pl.diffusion.splat_renders import ShortFits
from reconx_pl.errors import BadSceneError, ConfigurationError
from reconx_pl.geometry.rendering.views import DepthViews
from reconx_pl.types import Clip, ClipRenders, Progress

log = logging.getLogger(__name__)
SEEN_WARNING = 0.5  # share of the pixels of a clip's frames; if less is covered, somebody should know


class SamplingPipeline:
    """Generates clips from the first and the last frame, the cloud and the first camera, and from nothing else.

    Where the second known view is not the last frame, it looks at that view instead, and at its camera. A network that
    is guided by renders also looks at the depth of the two views and at the cameras of all frames: it generates what
    these cameras see.

    Args:
        network: the trained model; put into eval mode.
        config: sampling settings.
        device: where to work; the device of the network by default. Another one needs ``config.offload``.

    Raises:
        ConfigurationError: the network is elsewhere and is not to be offloaded; or the settings keep what its renders
            cannot tell.
    """

    def __init__(
        self,
        network: ReconXDiffusion,
        config: SamplingConfig | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.network = network.eval()
        self.config = config or SamplingConfig()
        render = network.render
        if self.config.keep_confirmed and (render is None or not render.residual or "splats" not in render.sources):
            raise ConfigurationError(
                "sampling.keep_confirmed is for a network that adds a residual to renders of splats (render.residual, "
                "render.sources), and this one does not: set it to false"
            )
        self._fits = ShortFits()
        here = next(network.unet.parameters()).device
        self.device = here if device is None else torch.device(device)
        if self.device.type != here.type and not self.config.offload:
            raise ConfigurationError(
                f"the network is on {here}, generation on {self.device} was asked for: move it there, or set "
                "sampling.offload"
            )

    def generate(
        self,
        clip: Clip,
        generator: torch.Generator | None = None,
        progress: Progress | None = None,
        *,
        end_condition_frame: int | None = None,
        views: DepthViews | None = None,
    ) -> Tensor:
        """Frames [T, 3, H, W] in [0, 1] of a clip of which two are known.

        Args:
            clip: T frames of which only the first and the second known one are looked at.
            generator: of the model's device; draws the starting noise.
            progress: counts steps of the sampler.
            end_condition_frame: the frame, 1 to T - 1, of the second known view; those after it are extrapolated, which
                takes a model that was trained so (``ExtrapolationConfig``). The model is then told of no points but
                those that the two views see. None is the last frame and the whole cloud. With ``views`` also 0: the
                first frame alone is known.
            views: what renders are made of, of a model that is guided by them; None takes the first and the last frame
                with the clip's depth.

        Raises:
            BadSceneError: the model has a structure branch and the clip, or what the two views see of its cloud, has
                too few points; or it is guided by renders and the clip lacks what they are made of.
            BadCameraError: a camera that is rendered into is not finite, or not rigid.
            ConfigurationError: ``end_condition_frame`` is no frame of the clip, or the model cannot extrapolate so.
        """
        count = clip.frames.shape[0]
        least = 0 if views is not None else 1
        if end_condition_frame is not None and not least <= end_condition_frame < count:
            raise ConfigurationError(
                f"the second known view is one of the frames {least} to {count - 1}, got {end_condition_frame}"
            )
        known = [0, count - 1 if end_condition_frame is None else end_condition_frame]
        renders = self._renders(clip, views, end_condition_frame)
        points = colors = None
        if self.uses_structure and clip.cloud is not None:
            cloud = clip.cloud
            if end_condition_frame is not None:
                cloud = cloud[self._seen(cloud.points, clip, known)]
            config = self.network.structure_encoder.config  # type: ignore[union-attr]
            points = structure_points(cloud.points[None], clip.cameras.world_to_camera[None], config)
            colors = cloud.colors[None]
        generated = self.generate_views(
            clip.images[known][None],
            torch.tensor([clip.fps]),
            count,
            points,
            [clip.key],
            [clip.caption],
            generator,
            progress,
            end_condition_frame=None if end_condition_frame is None else torch.tensor([end_condition_frame]),
            renders=renders,
            colors=colors,
        )
        return generated[0].cpu()

    def _renders(self, clip: Clip, views: DepthViews | None, end_condition_frame: int | None) -> ClipRenders | None:
        config = self.network.render
        if config is None or not self.config.render:
            if views is not None:
                known = repr(self.network.guidance) if config is None else "switched off by sampling.render"
                raise ConfigurationError(
                    "generation along a path of cameras needs a model that is guided by renders, and this one's "
                    f"guidance is {known}: take --path interpolated, or another model (docs/guidance.md)"
                )
            return None
        if end_condition_frame is not None and views is None:
            raise ConfigurationError(
                "a model that is guided by renders takes no generation.orbit_frames: it follows any path of cameras, "
                "--path orbit among them"
            )
        clip.cameras.check(f"the path of clip {clip.key}")
        renders = clip_renders(
            clip,
            config,
            self.device,
            views,
            self._fits,
            confirmed=self.config.keep_confirmed,
            fewest_steps=self.config.splat_steps,
        )
        covered = float((renders.coverage >= COVERED).any(dim=1).float().mean())
        if covered < SEEN_WARNING:
            log.warning(
                "clip %s: what the input views saw covers %.0f %% of the pixels of its frames; the model invents the "
                "rest. Let the path stay nearer to the input views",
                clip.key,
                100 * covered,
            )
        return renders

    def _seen(self, points: Tensor, clip: Clip, views: list[int]) -> Tensor:
        """Numbers [N] of the points that the views see, some over and over."""
        tokens = self.network.structure_encoder.config.tokens  # type: ignore[union-attr]
        seen = seen_numbers(points, clip.cameras[views], tokens)
        if seen is None:
            raise BadSceneError(
                f"clip {clip.key}: frames {views[0]} and {views[1]} see fewer than {tokens} points of the cloud, which "
                "the structure encoder needs; give a cloud of these two views, or sample with structure=False"
            )
        return seen

    @property
    def uses_structure(self) -> bool:
        """Whether generation takes a point cloud."""
        return self.network.structure_encoder is not None and self.config.structure

    @property
    def follows_cameras(self) -> bool:
        """Whether it generates what the cameras of a clip see."""
        return self.uses_render

    @property
    def uses_render(self) -> bool:
        """Whether generation takes renders."""
        return self.network.render is not None and self.config.render

    @torch.no_grad()  # sharded weights cannot be gathered in inference mode
    def generate_views(
        self,
        views: Tensor,  # [B, 2, 3, H, W] first frame, and last frame or frame ``second``, in [0, 1]
        fps: Tensor,  # [B] frames a second
        frames: int,
        points: Tensor | None,  # [B, N, 3] or [B, T, N, 3], ``structure_points`` in farthest-point order
        keys: Sequence[str],
        captions: Sequence[str],
        generator: torch.Generator | None = None,
        progress: Progress | None = None,
        *,
        end_condition_frame: Tensor | None = None,  # [B] int64, see ``generate``; ``points`` are taken as they are
        renders: ClipRenders | None = None,
        colors: Tensor | None = None,  # [B, N, 3] of the points, for a model with ``structure.color``
    ) -> Tensor:
        """As ``generate`` for a batch of clips: [B, T, 3, H, W] in [0, 1] on the model's device.

        Raises:
            BadSceneError: the model has a structure branch and there are too few points; names ``keys``.
            ConfigurationError: ``end_condition_frame`` is no frame of the clips; the model is guided by renders, and
                there are none.
        """
        if renders is None and self.uses_render:
            raise ConfigurationError(
                f"guidance {self.network.guidance!r} needs renders of clip {', '.join(keys)}: see "
                "diffusion/render_sources.py, or set sampling.render to false"
            )
        least = 0 if renders is not None else 1
        if end_condition_frame is not None and not bool(
            ((end_condition_frame >= least) & (end_condition_frame < frames)).all()
        ):
            raise ConfigurationError(
                f"second known views are frames {least} to {frames - 1} of their clips, got "
                f"{end_condition_frame.tolist()}"
            )
        network, config = self.network, self.config
        device, home = self.device, "cpu" if config.offload else None
        generator = generator or torch.Generator(device).manual_seed(0)
        cloud = self._points(points, keys, device)
        encoders = network.autoencoder, network.image_tokens, network.text_tokens, network.structure_encoder
        with resident(device, home, *encoders):
            sets = network.condition_sets(
                views.to(device),
                fps.to(device),
                frames,
                cloud,
                captions,
                generator,
                end_condition_frame=end_condition_frame,
                renders=None if renders is None or not self.uses_render else renders.to(device),
                colors=None if cloud is None or colors is None else colors[:, : cloud.shape[-2]].to(device),
            )
        guidance = Guidance(
            config.guidance_scale, config.structure_guidance_scale, config.guidance_rescale, config.batched
        )
        sampler = make_sampler(
            network.schedule, config.sampler, config.num_inference_steps, config.eta, config.last_step, config.spacing
        )
        precision = faster_precision(device) if config.precision == "auto" else config.precision
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
        with autocast, resident(device, home, network.unet, network.schedule):
            latents = sampler.sample(
                guidance.denoiser(network.bind, sets),
                tuple(sets.full.concat_latents.shape),
                generator,
                device=device,
                callback=(lambda step: progress("sampling", step.index + 1, step.total)) if progress else None,
            )
        base = sets.full.base_latents
        confirmed = None if renders is None or not config.keep_confirmed else renders.confirmed
        if base is not None and (config.residual_floor or confirmed is not None):
            confirmed = None if confirmed is None else confirmed.to(device)
            latents = kept_renders(latents, base.to(latents), config.residual_floor, confirmed)
        with resident(device, home, network.autoencoder):
            return network.decode(latents).float()

    def _points(self, points: Tensor | None, keys: Sequence[str], device: torch.device) -> Tensor | None:
        """As many points as the structure encoder was made for; None where generation goes without structure."""
        encoder = self.network.structure_encoder
        if encoder is None or not self.config.structure:
            return None
        have = 0 if points is None else points.shape[-2]
        if points is None or have < encoder.config.tokens:
            raise BadSceneError(
                f"clip {', '.join(keys)} has {have} cloud points, the structure encoder needs at least "
                f"{encoder.config.tokens}; pack it with geometry, or sample with structure=False"
            )
        return points[..., : encoder.config.points, :].to(device)
