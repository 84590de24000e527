"""The whole video diffusion model: conditions in, noise away, frames out (ReconX, IV-C and IV-D)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from reconx_pl.data.shards.caches import CachedInputs, wrong_caches
from reconx_pl.diffusion.cached_inputs import cached_inputs
from reconx_pl.diffusion.conditioning.conditions import Conditions
from reconx_pl.diffusion.conditioning.dropout import DropoutConfig, Dropped, draw_dropout, drop_images, drop_tokens
from reconx_pl.diffusion.conditioning.structure import StructureEncoder, StructureEncoderConfig
from reconx_pl.diffusion.config import UNetConfig
from reconx_pl.diffusion.sampling.extrapolation import seen_in_batch
from reconx_pl.diffusion.sampling.guidance import ConditionSets, Denoise
from reconx_pl.diffusion.sampling.objective import DiffusionLoss, diffusion_loss
from reconx_pl.diffusion.sampling.schedule import NoiseSchedule, ScheduleConfig
from reconx_pl.diffusion.unet import UNet
from reconx_pl.errors import ConfigurationError
from reconx_pl.geometry.cameras import relative_to_first
from reconx_pl.types import ClipBatch


@dataclass(frozen=True)
class RecordedDraws:
    """Random numbers of a training step that are given instead of drawn; None draws.

    Args:
        dropped: which samples lose which condition.
        posterior: [B T, C, h, w] standard normal noise of the latents' posterior, clip by clip.
        t: [B] int64 diffusion steps.
        noise: [B, C, T, h, w] standard normal diffusion noise.
    """

    dropped: Dropped | None = None
    posterior: Tensor | None = None
    t: Tensor | None = None
    noise: Tensor | None = None


class ReconXDiffusion(nn.Module):
    """U-Net, schedule, autoencoder and the three kinds of condition tokens.

    Args:
        unet: sizes of the U-Net; ``UNetConfig.dynamicrafter_512()`` gives the released model's.
        autoencoder: frames to latents; frozen.
        image_tokens: [B, 3, H, W] in [0, 1] to [B, T, Q, D]; ``null(images)`` gives the tokens of no image.
        text_tokens: B captions to [B, 77, D]; ``null()`` gives the tokens of no caption.
        structure: sizes of the structure encoder; None builds a model without structure guidance.
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
    ) -> None:
        super().__init__()
        channels: int = autoencoder.latent_channels  # type: ignore[assignment]
        if unet.in_channels != 2 * channels or unet.out_channels != channels:
            raise ConfigurationError(
                f"the autoencoder has {channels} latent channels, so the U-Net needs in_channels={2 * channels} "
                f"(noise and condition latents) and out_channels={channels}; it has {unet.in_channels} and "
                f"{unet.out_channels}"
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
            place: the folder. Only what is not a folder is looked up on the Hugging Face hub, as ``owner/name``.
            revision: branch, tag or commit on the hub.
            device: where the network goes.
            dtype: floating parameters are cast to it; None keeps the file's.

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
        points: Tensor | None = None,  # [B, N, 3] in the first camera's frame, farthest-point order
        captions: Sequence[str] | None = None,  # None: no captions
        dropped: Dropped | None = None,
        first_features: Tensor | None = None,  # [B, M, D] what the image encoder gives for the first frame
        end_condition_frame: Tensor | None = None,  # [B] int64, 1 to T - 1: place of the second latent; None: T - 1
    ) -> Conditions:
        """Everything that the U-Net is told about a clip of ``frames`` frames (ReconX, IV-D).

        Frames after ``end_condition_frame`` are extrapolated; ``points`` must then hold nothing that only they see
        (``extrapolation.seen_points``).
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
        concat[:, :, 0] = first_latent
        if end_condition_frame is None:
            concat[:, :, -1] = second_latent
        else:
            concat[torch.arange(batch, device=device), :, end_condition_frame.to(device)] = second_latent
        structure_tokens = None
        if self.structure_encoder is not None and points is not None:
            structure_tokens = self.structure_encoder(points)  # [B, S, D]
        return Conditions(
            text_tokens=text,
            image_tokens=image,
            fps=fps.to(device=device, dtype=torch.float32),
            concat_latents=concat,
            structure_tokens=structure_tokens,
            structure_keep=~dropped.structure if dropped is not None and structure_tokens is not None else None,
        )

    def condition_sets(
        self,
        views: Tensor,  # [B, 2, 3, H, W] first frame, and last frame or frame ``second``, in [0, 1]
        fps: Tensor,  # [B]
        frames: int,
        points: Tensor | None = None,  # [B, N, 3] in the first camera's frame; None generates without structure
        captions: Sequence[str] | None = None,
        generator: torch.Generator | None = None,
        end_condition_frame: Tensor | None = None,  # [B] int64, see ``conditions``
    ) -> ConditionSets:
        """What guidance compares: the latents alone, with text and image, with everything (ReconX, IV-D)."""
        latents, first = self.encode(views, generator), views[:, 0]
        full = self.conditions(
            first,
            latents[:, :, 0],
            latents[:, :, -1],
            fps,
            frames,
            points,
            captions,
            end_condition_frame=end_condition_frame,
        )
        return ConditionSets.from_full(full, self.text_tokens.null(), self.image_tokens.null(first))

    def forward(self, x: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        """Predict the schedule's target for noisy latents ``x`` [B, C, T, h, w] at ``timesteps`` [B]."""
        return self.unet(
            self._with_condition_latents(x, conditions),
            timesteps,
            text_tokens=conditions.text_tokens,
            image_tokens=conditions.image_tokens,
            fps=conditions.fps,
            structure_tokens=conditions.structure_tokens,
            structure_keep=conditions.structure_keep,
        )

    def _with_condition_latents(self, x: Tensor, conditions: Conditions) -> Tensor:
        # a U-Net whose weights are bfloat16 takes bfloat16; the sampler around it stays float32
        return torch.cat([x, conditions.concat_latents.to(x.dtype)], dim=1).to(self.unet.dtype)

    def bind(self, conditions: Conditions) -> Denoise:
        """``forward`` with the conditions fixed: their keys and values are computed once, for all steps of a sampler.

        Samples without structure cost no structure attention where those with it are the last of the batch, as they
        are in guidance.

        Args:
            conditions: of B samples.

        Returns:
            (x [B, C, T, h, w], t [B]) -> prediction [B, C, T, h, w].
        """
        if isinstance(next(self.unet.parameters()), DTensor):
            return lambda x, t: self(x, t, conditions)  # sharded weights come together in the forward pass alone
        structure, keep = conditions.structure_tokens, conditions.structure_keep
        if structure is not None and keep is not None:
            without = int((~keep).sum())
            if bool(keep[without:].all()):
                structure, keep = structure[without:] if without < len(keep) else None, None
        projections = self.unet.project(conditions.text_tokens, conditions.image_tokens, structure)
        return lambda x, t: self.unet(
            self._with_condition_latents(x, conditions),
            t,
            fps=conditions.fps,
            structure_keep=keep,
            projections=projections,
        )

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
        """The diffusion objective on a batch of clips (ReconX, IV-D, eq. 12).

        Args:
            batch: clips on the model's device; frames may still be uint8. Where it has caches, these are used and
                no frozen encoder runs; the same numbers are drawn.
            generator: draws condition drops, posterior noise, timesteps and noise, in this order; None where all of
                them are recorded.
            structure: False trains without the structure condition (stage 1).
            drop: False keeps every condition (validation).
            recorded: numbers that are given instead of drawn.
            end_condition_frame: [B] int64 frames of the second condition (``ExtrapolationConfig.draw``); None is the
                last frame of every clip. With structure a clip is then told of the points that its two conditions see,
                and keeps its last frame where these are fewer than structure tokens.

        Raises:
            ConfigurationError: the batch's caches were made by other weights.
        """
        recorded = recorded or RecordedDraws()
        moments, features = self._cached(batch)
        frames = batch["frames"].float() / 255.0 if "frames" in batch else None  # [B, T, 3, H, W]
        dropped = recorded.dropped
        if dropped is None and drop:
            if generator is None:
                raise ConfigurationError("condition drops need a torch.Generator, or recorded ones")
            dropped = draw_dropout(len(batch["key"]), generator, self.dropout, batch["fps"].device)
        latents = self._latents(frames, moments, generator, recorded.posterior)  # [B, C, T, h, w]
        points = None
        if structure and self.structure_encoder is not None:
            points = batch["points"]  # [B, N, 3]
            if end_condition_frame is not None:
                factor, tokens = self.autoencoder.factor, self.structure_encoder.config.tokens
                size = latents.shape[-2] * factor, latents.shape[-1] * factor
                points, end_condition_frame = seen_in_batch(batch, end_condition_frame, size, tokens)
            points = relative_to_first(points, batch["world_to_camera"][:, 0])
        at = latents.shape[2] - 1 if end_condition_frame is None else end_condition_frame.to(latents.device)
        conditions = self.conditions(
            None if frames is None else frames[:, 0],
            latents[:, :, 0],
            latents[torch.arange(len(latents), device=latents.device), :, at],
            batch["fps"],
            latents.shape[2],
            points,
            batch["caption"],
            dropped,
            features,
            end_condition_frame,
        )
        return diffusion_loss(
            lambda x, t: self(x, t, conditions),
            self.schedule,
            latents,
            generator,
            t=recorded.t,
            noise=recorded.noise,
        )

    def _cached(self, batch: ClipBatch) -> tuple[Tensor | None, Tensor | None]:
        """Moments [B, T, 2 C, h, w] and features of the first frame [B, M, D] of a batch of caches."""
        if "caches" not in batch:
            return None, None
        caches, wanted = batch["caches"], self.cached_inputs()
        if missing := [name for name in wanted.names if name not in caches]:
            raise wrong_caches(batch.get("folder", "the batch"), missing, caches)
        moments = None if wanted.moments is None else caches[wanted.moments]
        return moments, None if wanted.clip is None else caches[wanted.clip]

    def _latents(
        self, frames: Tensor | None, moments: Tensor | None, generator: torch.Generator | None, noise: Tensor | None
    ) -> Tensor:
        """[B, C, T, h, w] from the posterior's moments where there are any, else from the frames."""
        if moments is None:
            if frames is None:
                raise ConfigurationError("a batch needs frames, or caches that stand in for them")
            return self.encode(frames, generator, noise)
        latents = self.autoencoder.sample(moments.flatten(0, 1), generator, noise)  # [B T, C, h, w]
        return latents.unflatten(0, moments.shape[:2]).transpose(1, 2).contiguous()
