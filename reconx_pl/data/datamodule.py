"""Shards for a Lightning run: an endless training stream and a finite validation pass."""

from __future__ import annotations

import atexit
import logging
import signal
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from reconx_pl.data.shards.caches import CachedInputs, GuidanceInputs
from reconx_pl.data.shards.manifest import Manifest
from reconx_pl.data.shards.position import OnChange, Origin, StreamOrder, position_state, resume_origin
from reconx_pl.data.shards.stream import ClipPass, ClipStream, read_clips
from reconx_pl.data.shards.tolerant_loader import TolerantLoader
from reconx_pl.errors import ConfigurationError
from reconx_pl.types import Clip, ClipBatch

log = logging.getLogger(__name__)


class ShardDataModule(LightningDataModule):
    """Clips from folders of shards, packed by ``reconx pack`` or ``reconx procedural``.

    The training stream has no end and no length: run by steps (``max_steps``, ``val_check_interval`` and
    ``check_val_every_n_epoch=None``). It starts at ``global_step * accumulate_grad_batches``, so a run that resumes
    from a checkpoint goes on with the next batch, exactly, given the same shards, ranks, workers and batch size. A
    checkpoint knows these; where they have changed it is resumed as ``on_change`` says.

    Args:
        train: folder of the training shards; at least ranks x workers shards.
        val: folder of the validation shards; no validation without.
        test: folder for ``test``; the validation shards without.
        batch_size: clips a batch on each rank; clips of different sizes need 1.
        num_workers: processes that read and decode, on each rank; 0 decodes in the training process. One core gives
            about 40 clips of 32 x 256 x 256 a second (benchmarks/README.md).
        points: points of each clip's cloud, a prefix of its farthest-point order; 0 for none.
        seed: of the training order.
        max_bad_share: stop when a larger share of the clips cannot be read; in a folder of fewer than 100 clips, 0.01
            lets none pass. Until then each is logged once by name and replaced by another clip.
        shuffle: False trains in the order of the shards.
        shuffle_buffer: undecoded clips (about half a megabyte each at 32 x 256 x 256) that a worker shuffles among.
        cached: read what ``reconx cache`` made of the clips with the network's frozen encoders, instead of decoding the
            frames for them to run on; in training, validation and test, not in prediction. The order of the clips is
            the same. Shards without the caches of these very weights are refused.
        on_change: what to do with a checkpoint of other shards, batch size, ranks, workers, accumulation, seed or
            shuffling, whose place in the data does not exist here: "refuse" it, or begin with the "next_epoch" of the
            new order.
    """

    def __init__(
        self,
        train: str,
        val: str | None = None,
        test: str | None = None,
        batch_size: int = 1,
        num_workers: int = 0,
        points: int = 16384,
        seed: int = 0,
        max_bad_share: float = 0.01,
        shuffle: bool = True,
        shuffle_buffer: int = 64,
        cached: bool = False,
        on_change: OnChange = "refuse",
    ) -> None:
        super().__init__()
        if num_workers < 0:
            raise ConfigurationError(f"num_workers must not be negative, got {num_workers}")
        self.train, self.val, self.test = train, val, test
        self.batch_size, self.num_workers, self.points = batch_size, num_workers, points
        self.seed, self.max_bad_share = seed, max_bad_share
        self.shuffle, self.shuffle_buffer, self.cached = shuffle, shuffle_buffer, cached
        self.on_change: OnChange = on_change
        self._origin = Origin()

    def setup(self, stage: str | None = None) -> None:
        """Compare the shards that ``stage`` needs with their manifests, and their caches with the network.

        Raises:
            BadDataError, SchemaVersionError: what is wrong with which file, and what to do.
            ConfigurationError: caches of other weights, or none.
        """
        folders = {"fit": (self.train, self.val), "validate": (self.val,), "test": (self.test or self.val,)}
        for folder in folders.get(stage or "fit", ()):
            if folder is not None:
                manifest = Manifest.load(folder)
                manifest.verify()
                for needed in (self._cached_inputs(), self._guidance_inputs()):
                    if needed is not None:
                        needed.require(manifest)

    def train_dataloader(self) -> DataLoader[ClipBatch]:
        """Endless batches, from the trainer's step on.

        Raises:
            ConfigurationError: fewer shards than ranks x workers.
        """
        rank, world = self._place()
        stream = ClipStream(
            self.train,
            seed=self.seed,
            batch_size=self.batch_size,
            rank=rank,
            world=world,
            points=self.points,
            shuffle=self.shuffle,
            shuffle_buffer=self.shuffle_buffer,
            max_bad_share=self.max_bad_share,
            cached=self._cached_inputs(),
            first_epoch=self._origin.epoch,
            renders=self._guidance_inputs(),
        )
        stream.require_lanes(self.num_workers)
        return _StreamLoader(stream, self._consumed, **self._loader_arguments(self.num_workers))

    def val_dataloader(self) -> TolerantLoader | list[Any]:
        """The validation clips once, in order, equally many on every rank (see :class:`ClipPass`).

        While a run trains, reading that fails does not end it: see :class:`TolerantLoader`.
        """
        loader = self._pass(self.val, self._cached_inputs())
        return loader if isinstance(loader, list) else TolerantLoader(loader, self._trains)

    def _trains(self) -> bool:
        trainer = self.trainer
        return trainer is not None and trainer.state.fn == "fit" and not trainer.sanity_checking

    def test_dataloader(self) -> DataLoader[ClipBatch] | list[Any]:
        """As ``val_dataloader``, for the test clips."""
        return self._pass(self.test or self.val, self._cached_inputs())

    def predict_dataloader(self) -> DataLoader[ClipBatch] | list[Any]:
        """The clips that ``train.py predict`` generates: those of ``test``, with their frames."""
        return self._pass(self.test or self.val, None)

    def clips(self, split: Literal["val", "test"], limit: int | None = None) -> Iterator[Clip]:
        """Complete held-out clips (depth, confidence, cloud) in the order of the manifest, on every rank the same.

        Args:
            split: ``test`` falls back to the validation folder where there is no test folder.
            limit: the first so many.

        Raises:
            ConfigurationError: there is no such folder.
        """
        folder = self.val if split == "val" else self.test or self.val
        if folder is None:
            raise ConfigurationError(f"no {split} clips: set `{split}` of the data module to a folder of shards")
        return islice(read_clips(folder), limit)

    def clip_shape(self) -> tuple[int, int, int, float]:
        """Frames, rows and columns of pixels, and frame rate of the first training clip that can be read."""
        first = next(iter(ClipPass(self.train, points=0, max_bad_share=self.max_bad_share)))
        frames, _, height, width = first["frames"].shape[1:]
        return frames, height, width, first["fps"].item()

    def _pass(self, folder: str | None, cached: CachedInputs | None) -> DataLoader[ClipBatch] | list[Any]:
        if folder is None:
            return []
        rank, world = self._place()
        clips = ClipPass(
            folder, self.batch_size, rank, world, self.points, self.max_bad_share, cached, self._guidance_inputs()
        )
        return _Loader(clips, **self._loader_arguments(min(self.num_workers, len(clips))))

    def _cached_inputs(self) -> CachedInputs | None:
        """Which caches stand in for the frozen encoders of the network that is trained."""
        if not self.cached:
            return None
        ask = getattr(self._module(), "cached_inputs", None)
        if ask is None:
            raise ConfigurationError(
                "data.cached needs a trainer whose module names the caches that it reads (a method cached_inputs, as "
                "ReconXModule has it)"
            )
        return ask()

    def on_after_batch_transfer(self, batch: ClipBatch, dataloader_idx: int) -> ClipBatch:
        """Let the module that is trained add what it makes of a batch on the device: renders."""
        add = getattr(self._module(), "with_renders", None)
        return batch if add is None else add(batch)

    def _guidance_inputs(self) -> GuidanceInputs | None:
        """What the guidance of the network that is trained reads beside frames and points."""
        ask = getattr(self._module(), "guidance_inputs", None)
        return None if ask is None else ask()

    def _module(self) -> Any:
        """The module that is trained; None outside a trainer."""
        return getattr(self.trainer, "lightning_module", None)

    def _place(self) -> tuple[int, int]:
        """This rank and the number of ranks among which the clips are split."""
        if self.trainer is None:
            return 0, 1
        # where tensor parallelism makes several ranks work on one batch, the strategy counts them as one
        share = getattr(self.trainer.strategy, "distributed_sampler_kwargs", None)
        if share is None:
            return self.trainer.global_rank, self.trainer.world_size
        return share["rank"], share["num_replicas"]

    def _consumed(self) -> int:
        """Batches of the present order that each rank has trained on."""
        if self.trainer is None:
            return 0
        return self._origin.consumed(self.trainer.global_step, self.trainer.accumulate_grad_batches)

    def state_dict(self) -> dict[str, Any]:
        """What the order of the clips follows from, for the checkpoint."""
        if self.trainer is None:
            return {}
        return position_state(self._order(), self._origin, self.trainer.global_step)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare the order of a checkpoint's clips with this run's, in ``fit``.

        Raises:
            ConfigurationError: another order, and ``on_change`` is "refuse".
        """
        if self.trainer is None or self.trainer.state.fn != "fit":
            return
        self._origin = resume_origin(self._order(), state_dict, self.on_change)
        if self._origin != Origin(**state_dict["origin"]):
            log.warning(
                "the order of the clips has changed since the checkpoint: training goes on with epoch %d",
                self._origin.epoch,
            )

    def _order(self) -> StreamOrder:
        assert self.trainer is not None
        manifest = Manifest.load(self.train)
        return StreamOrder(
            shards=manifest.order_digest,
            clips=manifest.clips,
            batch_size=self.batch_size,
            ranks=self._place()[1],
            readers=max(self.num_workers, 1),
            accumulate=self.trainer.accumulate_grad_batches,
            seed=self.seed,
            shuffle=self.shuffle,
            shuffle_buffer=self.shuffle_buffer,
        )

    def _loader_arguments(self, workers: int) -> dict[str, Any]:
        on_cuda = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return {
            "batch_size": None,  # the streams yield whole batches
            "num_workers": workers,
            "persistent_workers": workers > 0,
            "pin_memory": on_cuda,
            # the loader draws a seed for its workers: not from the global generator
            "generator": torch.Generator().manual_seed(self.seed),
            "worker_init_fn": outlive_signals,
        }


def outlive_signals(worker: int) -> None:
    """Let a loader's process ignore what a scheduler sends to every process of a job that it takes away.

    The training process saves and stops then, and needs its next batches until the step is over.
    """
    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class _Loader(DataLoader[ClipBatch]):
    """Ends its processes, which outlive signals, when Python ends with an iteration that nobody has ended."""

    def __iter__(self) -> Any:
        iterator = super().__iter__()
        for worker in getattr(iterator, "_workers", ()):
            atexit.unregister(worker.kill)  # processes that stay from one iteration to the next are listed once
            atexit.register(worker.kill)  # runs before the standard library, which would ask and then wait for ever
        return iterator


class _StreamLoader(_Loader):
    """Asks where to begin whenever an iteration begins: Lightning begins one for every epoch that a limit ends."""

    def __init__(self, stream: ClipStream, consumed: Callable[[], int], **arguments: Any) -> None:
        self._stream, self._consumed = stream, consumed
        super().__init__(stream, **arguments)

    def __iter__(self) -> Any:
        self._stream.start_batch = self._consumed()
        return super().__iter__()
