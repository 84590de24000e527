"""The LightningModule: one stage of training over ``ReconXDiffusion``."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer

from reconx_pl.data.shards.caches import CachedInputs, GuidanceInputs
from reconx_pl.data.shards.tolerant_loader import FAILED
from reconx_pl.diffusion.conditioning.frozen import FrozenModule
from reconx_pl.diffusion.conditioning.structure import structure_points
from reconx_pl.diffusion.model import ReconXDiffusion
from reconx_pl.diffusion.pipeline import SamplingConfig, SamplingPipeline
from reconx_pl.diffusion.render_sources import batch_renders, guidance_inputs
from reconx_pl.diffusion.sampling.extrapolation import ExtrapolationConfig
from reconx_pl.diffusion.sampling.objective import DiffusionLoss
from reconx_pl.diffusion.weights import Queries
from reconx_pl.errors import BadWeightsError, ConfigurationError, MissingWeightsError
from reconx_pl.renamed import renamed_tensor
from reconx_pl.training.checkpointing.consolidate import NETWORK
from reconx_pl.training.checkpointing.network_weights import load_weights
from reconx_pl.training.ema import AverageConfig, WeightAverage
from reconx_pl.training.gradients import clip_gradients
from reconx_pl.training.optimizer import OptimizerConfig
from reconx_pl.training.sharding import ShardedStrategy, is_sharded, reshard, shard_network
from reconx_pl.training.stages import Stage, apply_stage, frozen_names
from reconx_pl.types import ClipBatch

log = logging.getLogger(__name__)
VALIDATION_SEED = 20_240_816  # one fixed draw of noise and timesteps, so that validation losses compare
PREDICTION_SEED = 1
EXTRAPOLATION_SEED = 2  # a generator of its own: all other draws of a step are those of a run without extrapolation
DISTURBANCE_SEED = 3  # likewise


class ReconXModule(L.LightningModule):
    """Trains one stage.

    Args:
        network: the diffusion model.
        stage: which parameters are trained, and whether the structure condition takes part.
        optimizer: AdamW and its schedule.
        sampling: how clips are generated in validation, test and evaluation.
        init_from: weights to start from: a checkpoint of an earlier stage (``.ckpt``, a file or a folder), a
            ``.safetensors`` file, a folder that ``reconx weights convert`` wrote, or a released checkpoint of the base
            model. Of a checkpoint these are the weights themselves, not their average.
        queries: what becomes of the resampler's queries where ``init_from`` has another number of frames:
            "interpolate" over time, or "repeat" those of the nearest earlier frame.
        seed: of timesteps, noise and condition dropout; the draw of a step follows from it and the step alone.
        ema: keep an exponential moving average of the trained weights; validation, generation and exported weights use
            it. None keeps none.
        frozen_encoder_precision: precision of the frozen CLIP encoders' weights; "bf16" halves their memory (1.04
            billion parameters at full size). The autoencoder stays in float32: its rounding would be in every frame.
        extrapolation: train samples whose second condition sits before the last frame (ReconX, V-D); None trains
            none.
    """

    def __init__(
        self,
        network: ReconXDiffusion,
        stage: Stage = Stage.structure,
        optimizer: OptimizerConfig | None = None,
        sampling: SamplingConfig | None = None,
        init_from: Path | None = None,
        queries: Queries = "interpolate",
        seed: int = 0,
        ema: AverageConfig | None = None,
        frozen_encoder_precision: Literal["32", "bf16"] = "32",
        extrapolation: ExtrapolationConfig | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.stage = Stage(stage)
        self.optimizer = optimizer or OptimizerConfig()
        self.sampling = sampling or SamplingConfig()
        self.init_from = init_from
        self.queries: Queries = queries
        self.seed = seed
        self.extrapolation = extrapolation
        encoder = network.structure_encoder
        ours = encoder is not None and (encoder.config.color or encoder.config.frame == "each")
        if extrapolation is not None and ours:
            raise ConfigurationError(
                "model.extrapolation needs structure.frame 'first' and no structure.color: the points of a second "
                "condition at another frame come without colours and cameras"
            )
        if extrapolation is not None and network.render is not None:
            raise ConfigurationError(
                "model.extrapolation moves the second condition to a frame whose depth no shard has, and this network "
                "is guided by renders of it: set model.extrapolation to null; it follows any path of cameras as it is"
            )
        self.trained = apply_stage(network, self.stage)
        self.ema_config = ema
        self.ema: WeightAverage | None = None  # made when weights are there and sharded
        self._loaded_step = 0
        self._has_weights = False  # those that a network is born with are none
        self._generates_bf16 = False  # sharded weights come together in this precision alone
        if frozen_encoder_precision == "bf16":
            for module in (*network.image_tokens.modules(), *network.text_tokens.modules()):
                if isinstance(module, FrozenModule):
                    module.fingerprint()  # caches know the weights as they were loaded
                    module.to(torch.bfloat16)
        self.encoder_names = frozenset(f"{NETWORK}{name}" for name in frozen_names(network))
        self.register_state_dict_post_hook(_leave_encoders_out)
        self.register_load_state_dict_pre_hook(_take_earlier_names)
        self.register_load_state_dict_post_hook(_do_not_miss_encoders)

    def setup(self, stage: str) -> None:
        # Lightning forgets here the path that was given to ``fit`` or ``validate``; train.py sets it beforehand
        comes = self.trainer.ckpt_path is not None
        if self.init_from is not None and not comes and not self._has_weights:
            load_weights(self.network, self.init_from, self.queries)
            self._has_weights = True
        if stage == "fit":
            groups = ", ".join(f"{group} {count:,}" for group, count in sorted(self.trained.items()))
            log.info("stage %s trains %s parameters: %s", self.stage.value, f"{sum(self.trained.values()):,}", groups)

    def configure_model(self) -> None:
        strategy = self.trainer.strategy
        if isinstance(strategy, ShardedStrategy) and not is_sharded(self.network):
            shard_network(self.network, strategy.mesh, strategy.policy)
            self._generates_bf16 = strategy.policy.param_dtype is torch.bfloat16
        if self.ema_config is not None and self.ema is None:
            self.ema = WeightAverage(self.network, self.ema_config)

    def on_train_start(self) -> None:
        self._has_weights = True

    def on_validation_start(self) -> None:
        self._require_weights()

    def on_test_start(self) -> None:
        self._require_weights()

    def on_predict_start(self) -> None:
        self._require_weights()

    def _require_weights(self) -> None:
        if not self._has_weights and self.trainer.state.fn != "fit":
            raise MissingWeightsError("there are no weights to work with: give --ckpt_path, or model.init_from")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._has_weights = True
        self._require_average(checkpoint)
        self._loaded_step = int(checkpoint["global_step"])

    def _require_average(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint.get("state_dict")  # a sharded strategy has compared and loaded already
        if state is not None and (self.ema is not None) != any(name.startswith("ema.") for name in state):
            raise BadWeightsError(
                "the checkpoint has no average of the weights and model.ema asks for one: set model.ema to null, or "
                "start a new run from the checkpoint with model.init_from"
                if self.ema is not None
                else "the checkpoint has an average of the weights: set model.ema as in the run that wrote it"
            )

    @property
    def step(self) -> int:
        """Optimizer steps behind the present weights; ``global_step`` stays 0 where a checkpoint is only evaluated."""
        return max(self.global_step, self._loaded_step)

    @property
    def uses_structure(self) -> bool:
        return self.stage in (Stage.structure, Stage.everything)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within it the network has the averaged weights, if an average is kept; afterwards its own, to the bit."""
        reshard(self.network)
        if self.ema is None:
            yield
            return
        with self.ema.swapped(self.network):
            try:
                yield
            finally:
                reshard(self.network)

    def view_generator(
        self, sampling: SamplingConfig | None = None, device: torch.device | str | None = None
    ) -> SamplingPipeline:
        """A sampling pipeline over the present weights (``averaged``), without structure before its stage.

        It leaves the network in eval mode. Where the network is sharded all ranks have to generate together.

        Args:
            sampling: instead of the module's own settings.
            device: where to generate, for a module that stays elsewhere (``sampling.offload``). Without it the network
                is where it works, and stays there: a module in training is never moved.
        """
        config = sampling or self.sampling
        if device is None:
            config = replace(config, offload=False)
        if not self.uses_structure:
            config = replace(config, structure=False)
        if self._generates_bf16:
            config = replace(config, precision="bf16")
        return SamplingPipeline(self.network, config, device)

    def guidance_inputs(self) -> GuidanceInputs | None:
        """For the data module: what the network's guidance is made of beside frames and points; None for nothing."""
        encoder = self.network.structure_encoder
        colors = self.uses_structure and encoder is not None and encoder.config.color
        return guidance_inputs(self.network.render, colors)

    def cached_inputs(self) -> CachedInputs:
        """For the data module: which members of cached shards stand in for the network's frozen encoders."""
        return self.network.cached_inputs()

    def _generator(self, *parts: int, device: str | torch.device | None = None) -> torch.Generator:
        """A generator that follows from the seed and ``parts`` alone, so that a resumed run draws the same numbers."""
        value = self.seed
        for part in (*parts, 0):  # 0: the draws of a single process are those of earlier versions
            value = (value * 1_000_003 + part + 1) % (2**63 - 1)
        return torch.Generator(device or self.device).manual_seed(value)

    def _number(self, batch_idx: int) -> int:
        """Number of this rank's batch among those of all ranks: 2 ranks draw what 1 rank draws in twice the batches."""
        return batch_idx * self.trainer.world_size + self.global_rank

    def with_renders(self, batch: ClipBatch) -> ClipBatch:
        """The batch with the renders of its clips, made on its device; in training of disturbed depth.

        Where held-out clips cannot be rendered while a run trains, ``FAILED``.
        """
        if self.network.render is None or not batch:
            return batch
        generator = None
        if self.trainer.training:
            # of the step and the clips: the data module's hook does not know the number of the batch
            keys = zlib.crc32(",".join(batch["key"]).encode())
            generator = self._generator(DISTURBANCE_SEED, self.global_step, keys, device="cpu")
        try:
            with torch.autocast(self.device.type, enabled=False):  # pixels need float32
                renders = batch_renders(batch, self.network.render, generator)
        except Exception:
            if not self._tolerates:
                raise
            log.exception("rendering for validation failed on %s; training goes on", ", ".join(batch["key"]))
            return FAILED
        return {**batch, "renders": renders}

    def training_step(self, batch: ClipBatch, batch_idx: int) -> dict[str, Tensor]:
        number = self._number(batch_idx % self.trainer.accumulate_grad_batches)
        output = self.network.loss(
            batch,
            self._generator(self.global_step, number),
            structure=self.uses_structure,
            end_condition_frame=self._end_condition_frame(batch, self.global_step, number),
        )
        size = len(batch["key"])
        self.log("train/loss", output.loss, prog_bar=True, batch_size=size)
        return {"loss": output.loss, "per_sample": output.per_sample, "t": output.t}

    def _end_condition_frame(self, batch: ClipBatch, *parts: int) -> Tensor | None:
        """Frames [B] of the second condition; None where every clip keeps its last frame."""
        if self.extrapolation is None:
            return None
        clips, frames = batch["world_to_camera"].shape[:2]
        return self.extrapolation.draw(clips, frames, self._generator(EXTRAPOLATION_SEED, *parts))

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """As Lightning's, which refuses fused optimizers under ``bf16-mixed``, where nothing has to be unscaled."""
        if not gradient_clip_val:
            return
        if gradient_clip_algorithm == "value":
            raise ConfigurationError("gradients are clipped by their norm: set trainer.gradient_clip_algorithm to norm")
        clip_gradients(optimizer, gradient_clip_val)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        done = any(parameter.grad is not None for parameter in self.network.parameters())
        if self.ema is not None and done:  # FiniteGuard leaves no gradients where it leaves out a step
            self.ema.update(self.network, self.global_step + 1)  # Lightning counts this step when it is over

    def _held_out(self, batch: ClipBatch, batch_idx: int) -> DiffusionLoss:
        generator = self._generator(VALIDATION_SEED, self._number(batch_idx))
        end_condition_frame = None
        if self.extrapolation is not None and self.extrapolation.validation:
            end_condition_frame = self._end_condition_frame(batch, VALIDATION_SEED, self._number(batch_idx))
        with self.averaged():
            return self.network.loss(
                batch, generator, structure=self.uses_structure, drop=False, end_condition_frame=end_condition_frame
            )

    def validation_step(self, batch: ClipBatch, batch_idx: int) -> Tensor | None:
        """The loss [] of a held-out batch; None where it failed while a run trains, which it does not end.

        Ranks agree: what failed on one counts on none.
        """
        loss = self._attempt(batch, batch_idx) if self._tolerates else self._held_out(batch, batch_idx).loss
        if loss is not None:
            self.log("val/loss", loss, prog_bar=True, sync_dist=True, batch_size=len(batch["key"]))
        return loss

    @property
    def _tolerates(self) -> bool:
        """Whether this is validation while a run trains, which it does not end by failing."""
        return self.trainer.state.fn == "fit" and self.trainer.validating

    def _attempt(self, batch: ClipBatch, batch_idx: int) -> Tensor | None:
        loss: Tensor | None = None
        agree = self.trainer.strategy.reduce_boolean_decision
        if not agree(bool(batch)):  # ``FAILED`` is another empty one after its way to the device
            return None
        try:
            loss = self._held_out(batch, batch_idx).loss
        except Exception:
            log.exception("validation failed on %s; training goes on", ", ".join(batch["key"]))
        return loss if agree(loss is not None) else None

    def test_step(self, batch: ClipBatch, batch_idx: int) -> Tensor:
        output = self._held_out(batch, batch_idx)
        self.log("test/loss", output.loss, sync_dist=True, batch_size=len(batch["key"]))
        return output.loss

    def predict_step(self, batch: ClipBatch, batch_idx: int) -> Tensor:
        """Generated frames [B, T, 3, H, W] in [0, 1]; ``GeneratedClips`` writes them."""
        view_generator = self.view_generator()
        frames = batch["frames"][:, [0, -1]].float() / 255.0
        points = None
        if view_generator.uses_structure:
            config = self.network.structure_encoder.config  # type: ignore[union-attr]
            points = structure_points(batch["points"], batch["world_to_camera"], config)
        count, generator = batch["frames"].shape[1], self._generator(PREDICTION_SEED, self._number(batch_idx))
        with self.averaged():
            return view_generator.generate_views(
                frames,
                batch["fps"],
                count,
                points,
                batch["key"],
                batch["caption"],
                generator,
                renders=batch.get("renders"),
                colors=batch.get("colors"),
            )

    def configure_optimizers(self) -> OptimizerLRScheduler:
        config = self.optimizer
        optimizer = config.build(self.network)
        total = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: config.factor(step, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def _leave_encoders_out(module: ReconXModule, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Pretrained frozen encoders keep files of their own: no checkpoint holds them again."""
    for name in module.encoder_names:
        state.pop(prefix + name, None)


def _take_earlier_names(module: ReconXModule, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """A checkpoint of an earlier version may call a tensor otherwise."""
    start = prefix + NETWORK
    for name in [name for name in state if name.startswith(start)]:
        state[renamed_tensor(name)] = state.pop(name)


def _do_not_miss_encoders(module: ReconXModule, keys: Any) -> None:
    """Loading is strict about everything but the frozen encoders."""
    keys.missing_keys[:] = [name for name in keys.missing_keys if name not in module.encoder_names]
