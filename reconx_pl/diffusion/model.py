"""The whole video diffusion model: conditions in, noise away, frames out (ReconX, IV-C and IV-D)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from reconx_pl.data.shards.caches import CachedInputs
from reconx_pl.diffusion.batch_loss import RecordedDraws, batch_loss
from reconx_pl.diffusion.cached_inputs import cached_inputs
from reconx_pl.diffusion.conditioning.conditions import Conditions
from reconx_pl.diffusion.conditioning.dropout import DropoutConfig, Dropped, drop_images, drop_tokens
from reconx_pl.diffusion.conditioning.render_config import GuidanceName, RenderConfig, check_guidance
from reconx_pl.diffusion.conditioning.render_latents import RenderLatents, render_latents
from reconx_pl.diffusion.conditioning.structure import StructureEncoder, StructureEncoderConfig
from reconx_pl.diffusion.config import UNetConfig
from reconx_pl.diffusion.sampling.guidance import ConditionSets, Denoise
from reconx_pl.diffusion.sampling.objective import DiffusionLoss
from reconx_pl.diffusion.sampling.schedule import NoiseSchedule, ScheduleConfig
from reconx_pl.diffusion.unet import UNet
from reconx_pl.errors import ConfigurationError
from reconx_pl.files.ranks import is_sharded
from reconx_pl.types import ClipBatch, ClipRenders


class ReconXDiffusion(nn.Module):
    """U-Net, schedule, autoencoder and the three kinds of condition tokens.

    Args:
        unet: sizes of the U-Net; ``UNetConfig.dynamicrafter_512()`` gives the released model's.
        autoencoder: frames to latents; frozen.
        image_tokens: [B, 3, H, W] in [0, 1] to [B, T, Q, D]; ``null(images)`` gives the tokens of no image.
        text_tokens: B captions to [B, 77, D]; ``null()`` gives the tokens of no caption.
        structure: sizes of the structure encoder; None builds a model without structure guidance.
        guidance: by what is known of the scene: "structure" is the paper's tokens, "render" what is known rendered into
            the camera of every frame, "both", or "none". None follows from ``structure`` and ``render``.
        render: how renders are made and reach the network; None takes the default where ``guidance`` asks for them.
        schedule: noise schedule and prediction target.
        dropout: shares of conditions dropped in training.
        caption: stands in where a clip has no caption. The paper says nothing of captions; "" tells the text encoder
            nothing; one sentence for all clips, as ViewCrafter has it, is the alternative.
        captions: "clip" reads the clips' own captions, "fixed" gives every clip ``caption``.

    Raises:
        ConfigurationError: sizes that do not fit together.
    """

    def __init__(
        self,
        unet: UNetConfig,
        autoencoder: nn.Module,
        image_tokens: nn.Module,
        text_tokens: nn.Module,
        structure: StructureEncoderConfig | None = None,
        schedule: ScheduleConfig | None = None,
        dropout: DropoutConfig | None = None,
        caption: str = "",
        captions: Literal["clip", "fixed"] = "clip",
        guidance: GuidanceName | None = None,
        render: RenderConfig | None = None,
    ) -> None:
        super().__init__()
        channels: int = autoencoder.latent_channels  # type: ignore[assignment]
        self.guidance, self.render = check_guidance(guidance, structure is not None, render)
        more = 0 if self.render is None else self.render.extra_channels(channels, int(autoencoder.factor))  # type: ignore[arg-type]
        if unet.in_channels != 2 * channels + more or unet.out_channels != channels:
            of_renders = f", and {more} of renders" if more else ""
            raise ConfigurationError(
                f"the autoencoder has {channels} latent channels, so the U-Net needs in_channels={2 * channels + more} "
                f"(noise and condition latents{of_renders}) and out_channels={channels}; it has {unet.in_channels} and "
                f"{unet.out_channels}"
            )
        if self.render is not None and self.render.residual and (schedule or ScheduleConfig()).prediction != "sample":
            raise ConfigurationError(
                "render.residual adds the prediction to the renders, so that it has to be the clean latent: set "
                "schedule.prediction to sample, or render.residual to false"
            )
        if structure is not None and structure.width != unet.context_dim:
            raise ConfigurationError(
                f"structure tokens are {structure.width} wide, the U-Net's context {unet.context_dim}: make them equal"
            )
        if (structure is not None) != unet.structure_guidance:
            raise ConfigurationError(
                "unet.structure_guidance and the structure encoder go together: set both or neither"
            )
        self.unet = UNet(unet)
        if more:
            with torch.no_grad():  # as it was without them, until they are trained
                self.unet.first_conv.weight[:, 2 * channels :] = 0
        # Any: nn.Module types every attribute as a tensor or a module, and these have methods of their own
        self.autoencoder: Any = autoencoder.requires_grad_(False).eval()
        self.image_tokens: Any = image_tokens
        self.text_tokens: Any = text_tokens
        self.structure_encoder = StructureEncoder(structure) if structure is not None else None
        self.schedule = NoiseSchedule(schedule or ScheduleConfig())
        self.dropout = dropout or DropoutConfig()
        if captions not in ("clip", "fixed"):
            raise ConfigurationError(f"captions is 'clip' or 'fixed', got {captions!r}")
        self.caption, self.captions = caption, captions

    @classmethod
    def from_pretrained(
        cls,
        place: str | Path,
        *,
        revision: str | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
    ) -> ReconXDiffusion:
        """The network of a folder that ``save_pretrained`` or ``reconx weights convert`` wrote, in eval mode.

        Built without memory and filled from the mapped file, strictly. A structure branch that the file lacks starts
        from its initial values, with a line in the log.

        Args:
            place: the folder, a file of ``reconx weights export``, or the name of a model that comes with the package
                (``reconx-mini``). What is none of them is looked up on the Hugging Face hub, as ``owner/name``.
            revision: branch, tag or commit on the hub.
            device: where the network goes.
            dtype: floating parameters are cast to it; None keeps those of a folder, and takes float32 for a file.

        Raises:
            MissingWeightsError: no such folder, and not on the hub or no network.
            BadWeightsError: a configuration that reaches out of this package, or weights that do not fit it.
        """
        from reconx_pl.diffusion.weights.pretrained import load_pretrained

        return load_pretrained(place, revision, device, dtype)

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write the whole network, frozen encoders included: ``model.safetensors``, ``config.json``, a model card.

        Args:
            folder: is made if need be; the files in it are replaced.
            dtype: floating tensors are cast to it; None keeps theirs.
        """
        from reconx_pl.diffusion.weights.pretrained import save_pretrained

        save_pretrained(self, folder, dtype)

    def train(self, mode: bool = True) -> ReconXDiffusion:
        super().train(mode)
        self.autoencoder.eval()  # frozen: no dropout, no statistics
        return self

    def encode(self, frames: Tensor, generator: torch.Generator | None = None, noise: Tensor | None = None) -> Tensor:
        """Frames [B, T, 3, H, W] in [0, 1] to latents [B, C, T, h, w]; ``noise`` [B T, C, h, w] stands in for drawn."""
        given = {} if noise is None else {"noise": noise}  # an autoencoder without a posterior knows no noise
        with torch.no_grad():
            latents = self.autoencoder.encode(frames.flatten(0, 1), generator=generator, **given)  # [B T, C, h, w]
        return latents.unflatten(0, frames.shape[:2]).transpose(1, 2).contiguous()

    def cached_inputs(self) -> CachedInputs:
        """Which members of a cached shard stand in for this network's frozen encoders.

        Raises:
            ConfigurationError: it has no frozen encoders.
        """
        return cached_inputs(self.autoencoder, self.image_tokens)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, C, T, h, w] to frames [B, T, 3, H, W] in [0, 1]."""
        with torch.no_grad():
            frames = self.autoencoder.decode(latents.transpose(1, 2).flatten(0, 1))  # [B T, 3, H, W]
        return frames.unflatten(0, (latents.shape[0], latents.shape[2])).clamp(0, 1)

    def conditions(
        self,
        first_frame: Tensor | None,  # [B, 3, H, W] in [0, 1]; None with first_features
        first_latent: Tensor,  # [B, C, h, w]
        second_latent: Tensor,  # [B, C, h, w] of the last frame, or of frame ``second``
        fps: Tensor,  # [B] frames a second
        frames: int,
        points: Tensor | None = None,  # [B, N, 3] or [B, T, N, 3], ``structure_points`` in farthest-point order
        captions: Sequence[str] | None = None,  # None: no captions
        dropped: Dropped | None = None,
        first_features: Tensor | None = None,  # [B, M, D] what the image encoder gives for the first frame
        end_condition_frame: Tensor | None = None,  # [B] int64, 1 to T - 1: place of the second latent; None: T - 1
        renders: RenderLatents | None = None,
        colors: Tensor | None = None,  # [B, N, 3] of the points, with ``structure.color``
    ) -> Conditions:
        """Everything that the U-Net is told about a clip of ``frames`` frames (ReconX, IV-D).

        Frames after ``end_condition_frame`` are extrapolated; ``points`` must then hold nothing that only they see
        (``extrapolation.seen_points``). Without ``renders`` a network that is guided by them gets what a sample gets
        that has lost them: zeros.
        """
        batch, device = first_latent.shape[0], first_latent.device
        own = [""] * batch if captions is None or self.captions == "fixed" else captions
        text = self.text_tokens([caption or self.caption for caption in own])  # [B, 77, D]
        if dropped is not None:
            text = drop_tokens(text, self.text_tokens.null(), dropped.text)
        if first_features is not None:
            image = self.image_tokens.project(first_features, None if dropped is None else dropped.image)
        elif first_frame is not None:
            image = self.image_tokens(first_frame if dropped is None else drop_images(first_frame, dropped.image))
        else:
            raise ConfigurationError("the first frame is needed, or what the image encoder gives for it")
        if image.ndim == 4 and image.shape[1] != frames:
            raise ConfigurationError(
                f"asked for {frames} frames of a model whose resampler has queries for {image.shape[1]} (its "
                f"video_length or frames): generate {image.shape[1]} frames, or build it for {frames} and load the "
                "weights into that, which adapts the queries (docs/weights.md)"
            )
        concat = first_latent.new_zeros(batch, first_latent.shape[1], frames, *first_latent.shape[2:])
        more, base = self._no_more_latents(concat), None
        if renders is not None:
            keep = first_latent.new_ones(batch, 1, 1, 1, 1)
            if dropped is not None and dropped.render is not None:
                keep[dropped.render] = 0
            concat = concat if renders.concat is None else renders.concat * keep
            more = more if renders.more is None else renders.more * keep
            base = None if renders.base is None else renders.base * keep
        concat[:, :, 0] = first_latent
        if end_condition_frame is None:
            concat[:, :, -1] = second_latent
        else:
            concat[torch.arange(batch, device=device), :, end_condition_frame.to(device)] = second_latent
        structure_tokens = None
        if self.structure_encoder is not None and points is not None:
            structure_tokens = self.structure_encoder(points, colors)  # [B, S, D] or [B, T, S, D]
        return Conditions(
            text_tokens=text,
            image_tokens=image,
            fps=fps.to(device=device, dtype=torch.float32),
            concat_latents=concat,
            structure_tokens=structure_tokens,
            structure_keep=~dropped.structure if dropped is not None and structure_tokens is not None else None,
            more_latents=more,
            base_latents=base,
        )

    def _no_more_latents(self, like: Tensor) -> Tensor | None:
        """[B, E, T, h, w] zeros where the U-Net has further input channels."""
        extra = self.unet.config.in_channels - 2 * like.shape[1]
        return like.new_zeros(like.shape[0], extra, *like.shape[2:]) if extra else None

    def render_latents(
        self,
        renders: ClipRenders,
        photographs: Tensor,  # [B, 2, 3, H, W] in [0, 1]
        generator: torch.Generator | None = None,
        end_condition_frame: Tensor | None = None,  # [B] int64, see ``conditions``
        noise: Tensor | None = None,  # [B T, C, h, w] of the posterior, of one source
    ) -> RenderLatents:
        """What renders put into the U-Net, with the photographs in their places.

        Raises:
            ConfigurationError: the network is not guided by renders, or they do not go with its configuration.
        """
        if self.render is None:
            raise ConfigurationError(f"this network's guidance is {self.guidance!r}: it takes no renders")
        batch, last = renders.color.shape[0], renders.color.shape[2] - 1
        places = torch.full((batch,), last) if end_condition_frame is None else end_condition_frame
        return render_latents(
            renders,
            photographs,
            places.to(renders.color.device),
            self.render,
            lambda frames: self.encode(frames, generator, noise),
            self.autoencoder.factor,
        )

    def condition_sets(
        self,
        views: Tensor,  # [B, 2, 3, H, W] first frame, and last frame or frame ``second``, in [0, 1]
        fps: Tensor,  # [B]
        frames: int,
        points: Tensor | None = None,  # as for ``conditions``; None generates without structure
        captions: Sequence[str] | None = None,
        generator: torch.Generator | None = None,
        end_condition_frame: Tensor | None = None,  # [B] int64, see ``conditions``
        renders: ClipRenders | None = None,
        colors: Tensor | None = None,
    ) -> ConditionSets:
        """What guidance compares: the latents alone, with text and image, with everything (ReconX, IV-D).

        Renders are among the latents: guidance never acts on them.
        """
        rendered = None if renders is None else self.render_latents(renders, views, generator, end_condition_frame)
        if rendered is not None and rendered.concat is not None:  # the photographs are in it
            at = rendered.concat.shape[2] - 1 if end_condition_frame is None else end_condition_frame.to(views.device)
            ends = rendered.concat[:, :, 0], rendered.concat[torch.arange(len(views), device=views.device), :, at]
        else:
            latents = self.encode(views, generator)
            ends = latents[:, :, 0], latents[:, :, -1]
        first = views[:, 0]
        full = self.conditions(
            first,
            *ends,
            fps,
            frames,
            points,
            captions,
            end_condition_frame=end_condition_frame,
            renders=rendered,
            colors=colors,
        )
        return ConditionSets.from_full(full, self.text_tokens.null(), self.image_tokens.null(first))

    def forward(self, x: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        """Predict the schedule's target for noisy latents ``x`` [B, C, T, h, w] at ``timesteps`` [B]."""
        output = self.unet(
            self._with_condition_latents(x, conditions),
            timesteps,
            text_tokens=conditions.text_tokens,
            image_tokens=conditions.image_tokens,
            fps=conditions.fps,
            structure_tokens=conditions.structure_tokens,
            structure_keep=conditions.structure_keep,
        )
        return self._with_base(output, timesteps, conditions)

    def _with_condition_latents(self, x: Tensor, conditions: Conditions) -> Tensor:
        parts = [x, conditions.concat_latents.to(x.dtype)]
        if conditions.more_latents is not None:
            parts.append(conditions.more_latents.to(x.dtype))
        # a U-Net whose weights are bfloat16 takes bfloat16; the sampler around it stays float32
        return torch.cat(parts, dim=1).to(self.unet.dtype)

    def _with_base(self, output: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        """The prediction from what the U-Net gives: the clean latent is that of the renders and a residual."""
        if conditions.base_latents is None:
            return output
        return output + self.schedule.scaled(conditions.base_latents.to(output.dtype), timesteps)

    def bind(self, conditions: Conditions) -> Denoise:
        """``forward`` with the conditions fixed: their keys and values are computed once, for all steps of a sampler.

        Samples without structure cost no structure attention where those with it are the last of the batch, as they
        are in guidance.

        Args:
            conditions: of B samples.

        Returns:
            (x [B, C, T, h, w], t [B]) -> prediction [B, C, T, h, w].
        """
        if is_sharded(next(self.unet.parameters())):
            return lambda x, t: self(x, t, conditions)  # sharded weights come together in the forward pass alone
        structure, keep = conditions.structure_tokens, conditions.structure_keep
        if structure is not None and keep is not None:
            without = int((~keep).sum())
            if bool(keep[without:].all()):
                structure, keep = structure[without:] if without < len(keep) else None, None
        projections = self.unet.project(conditions.text_tokens, conditions.image_tokens, structure)

        def predict(x: Tensor, t: Tensor) -> Tensor:
            given = self._with_condition_latents(x, conditions)
            output = self.unet(given, t, fps=conditions.fps, structure_keep=keep, projections=projections)
            return self._with_base(output, t, conditions)

        return predict

    def loss(
        self,
        batch: ClipBatch,
        generator: torch.Generator | None,
        *,
        structure: bool = True,
        drop: bool = True,
        recorded: RecordedDraws | None = None,
        end_condition_frame: Tensor | None = None,
    ) -> DiffusionLoss:
        """The diffusion objective on a batch of clips; see ``batch_loss``."""
        return batch_loss(
            self,
            batch,
            generator,
            structure=structure,
            drop=drop,
            recorded=recorded,
            end_condition_frame=end_condition_frame,
        )
