"""A small training run as a program, started once for each rank: ``python rank_program.py jobs.json``.

Jobs of one file are run one after the other in the same processes. The clips of a step are numbered over all ranks and
accumulated batches, so that runs of other numbers of ranks train on the same ones.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, IterableDataset

from reconx_pl.diffusion.autoencoder import PixelUnshuffleAutoencoder
from reconx_pl.diffusion.conditioning.image_tokens import SmallImageConfig, SmallImageTokens
from reconx_pl.diffusion.conditioning.structure import StructureEncoderConfig
from reconx_pl.diffusion.conditioning.text_tokens import LearnedTextTokens
from reconx_pl.diffusion.config import UNetConfig
from reconx_pl.diffusion.model import ReconXDiffusion
from reconx_pl.diffusion.pipeline import SamplingConfig
from reconx_pl.files.ranks import all_or_none
from reconx_pl.training.callbacks.tolerance import tolerated
from reconx_pl.training.checkpointing.network_weights import whole_tensors
from reconx_pl.training.checkpointing.resume import EitherCheckpointIO
from reconx_pl.training.checkpointing.safe_checkpoint import SafeModelCheckpoint
from reconx_pl.training.ema import AverageConfig
from reconx_pl.training.module import ReconXModule
from reconx_pl.training.optimizer import OptimizerConfig
from reconx_pl.training.sharding import ShardedStrategy
from reconx_pl.training.stages import Stage

FRAMES, SIDE, POINTS = 4, 16, 16


@dataclass
class Job:
    """One call of ``fit``. A checkpoint is written every ``checkpoint_every`` steps into ``folder``."""

    name: str
    folder: str
    steps: int
    ranks: int = 1
    strategy: str = "sharded"  # or "ddp", "auto"
    accumulate: int = 1
    stage: str = "structure"
    ckpt_path: str | None = None
    init_from: str | None = None
    ema: bool = True
    validate_every: int = 0
    checkpoint_every: int = 5
    checkpointing: bool = True
    generate_first: bool = False
    precision: str = "32-true"
    safe: bool = False  # checkpoints that fail do not end the run
    full: tuple[int, int, int] | None = None  # rank that cannot write to the disk from one step up to before another
    fails: int | None = None  # rank that fails after validation, where all work together


class FailsTogether(L.Callback):
    """After validation one rank raises, and all have to know."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    @tolerated("working together")
    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        with all_or_none():
            if trainer.global_rank == self.rank and not trainer.sanity_checking:
                raise RuntimeError("no clips here")


class FullDisk(L.Callback):
    """From step ``first`` up to before ``last`` no file of this rank may grow beyond a few bytes."""

    def __init__(self, rank: int, first: int, last: int) -> None:
        self.rank, self.first, self.last = rank, first, last

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_rank == self.rank:
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            full = self.first <= trainer.global_step < self.last
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000 if full else hard, hard))


def tiny_network(checkpointing: bool = True) -> ReconXDiffusion:
    torch.manual_seed(0)
    network = ReconXDiffusion(
        UNetConfig(
            in_channels=24,
            out_channels=12,
            model_channels=32,
            channel_mult=(1, 2),
            num_res_blocks=1,
            attention_strides=(2,),
            num_head_channels=16,
            context_dim=32,
            dropout=0.0,
            activation_checkpointing=checkpointing,
        ),
        PixelUnshuffleAutoencoder(factor=2),
        SmallImageTokens(SmallImageConfig(frames=FRAMES, width=32, image_size=16, resampler_width=32, heads=1)),
        LearnedTextTokens(tokens=4, width=32),
        StructureEncoderConfig(points=POINTS, tokens=4, octaves=2, width=32),
    )
    for parameter in network.parameters():  # the zeros that it is born with would hide half of it
        parameter.data += 0.02 * torch.randn_like(parameter)
    return network


def numbered_batch(number: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(number)
    eye = torch.eye(4).expand(2, FRAMES, 4, 4).clone()
    return {
        "key": [f"clip{number}a", f"clip{number}b"],
        "caption": ["", ""],
        "frames": torch.randint(0, 256, (2, FRAMES, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8),
        "points": torch.rand(2, POINTS, 3, generator=generator) + 1,
        "world_to_camera": eye,
        "fps": torch.full((2,), 8.0),
    }


class NumberedBatches(L.LightningDataModule):
    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(_Stream(self.trainer), batch_size=None)

    def val_dataloader(self) -> DataLoader[Any]:
        rank = self.trainer.global_rank
        return DataLoader([numbered_batch(10_000 + rank)], batch_size=None)  # type: ignore[arg-type]


class _Stream(IterableDataset[Any]):
    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def __iter__(self) -> Iterator[dict[str, Any]]:
        trainer = self.trainer
        index = trainer.global_step * trainer.accumulate_grad_batches
        while True:
            yield numbered_batch(index * trainer.world_size + trainer.global_rank)
            index += 1


class Collectives(TorchDispatchMode):
    """Counts the collectives that run within it (``CommDebugMode`` fails where the root is entered by a method)."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace.startswith(("c10d", "_c10d")):
            self.counts[func._opname.strip("_")] += 1
        return func(*args, **(kwargs or {}))


class Record(L.Callback):
    """What a rank trained on and what came out, as ``<name>.rank<r>.json``; rank 0 adds ``<name>.safetensors``."""

    def __init__(self, job: Job) -> None:
        self.job, self.batches = job, []
        self.collectives = Collectives()

    def on_train_start(self, trainer: Any, pl_module: ReconXModule) -> None:
        if self.job.generate_first:
            self.on_validation_end(trainer, pl_module)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if not self.batches and self.job.strategy == "sharded":
            self.collectives.__enter__()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not self.batches and self.job.strategy == "sharded":
            self.collectives.__exit__(None, None, None)
        loss = float(outputs["loss"].detach()) * trainer.accumulate_grad_batches
        self.batches.append([trainer.global_step, batch["key"], loss])

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        with pl_module.averaged():  # as MediaCallback: sharded ranks generate together, before and between steps
            batch, view_generator = numbered_batch(10_000), pl_module.view_generator()
            clip = [batch[key] for key in ("points", "key", "caption")]
            views = batch["frames"][:, [0, -1]].float() / 255
            view_generator.generate_views(views, batch["fps"], FRAMES, *clip, torch.Generator().manual_seed(0))
        pl_module.train()

    def on_fit_end(self, trainer: Any, pl_module: ReconXModule) -> None:
        strategy = trainer.strategy
        sharded = isinstance(strategy, ShardedStrategy)
        own = {n: p for n, p in pl_module.named_parameters() if p.requires_grad}
        names = list(own)
        state = strategy.optimizer_state(trainer.optimizers[0])["state"]
        tensors = dict(pl_module.state_dict())
        for key, moments in state.items():
            name = key if sharded else names[key]
            tensors |= {f"optimizer/{name}/{moment}": value for moment, value in moments.items()}
        local = sum((t.to_local() if isinstance(t, DTensor) else t).numel() for t in own.values())
        facts = {
            "batches": self.batches,
            "collectives": self.collectives.counts,
            "local": local,
            "trained": sum(p.numel() for p in own.values()),
            "moments": sum(
                (m.to_local() if isinstance(m, DTensor) else m).numel() for s in state.values() for m in s.values()
            ),
            "step": trainer.global_step,
            "val": float(trainer.callback_metrics.get("val/loss", 0)),
        }
        folder = Path(self.job.folder)
        (folder / f"{self.job.name}.rank{trainer.global_rank}.json").write_text(json.dumps(facts))
        whole = {name: tensor.detach().clone() for name, tensor in whole_tensors(tensors)}
        if trainer.is_global_zero:
            save_file(whole, folder / f"{self.job.name}.safetensors")


def run(job: Job) -> None:
    module = ReconXModule(
        tiny_network(job.checkpointing),
        Stage(job.stage),
        OptimizerConfig(lr=1e-3, warmup_steps=3),
        SamplingConfig(num_inference_steps=2),
        init_from=Path(job.init_from) if job.init_from else None,
        ema=AverageConfig(decay=0.9) if job.ema else None,
    )
    trainer = L.Trainer(
        accelerator="cpu",
        devices=job.ranks,
        strategy=ShardedStrategy() if job.strategy == "sharded" else job.strategy,
        max_steps=job.steps,
        accumulate_grad_batches=job.accumulate,
        gradient_clip_val=0.3,  # below the norms of this run, so that the norm has to be that of all parts
        precision=job.precision,  # type: ignore[arg-type]
        callbacks=[
            Record(job),
            *([FullDisk(*job.full)] if job.full else []),
            *([FailsTogether(job.fails)] if job.fails is not None else []),
            (SafeModelCheckpoint if job.safe else ModelCheckpoint)(
                job.folder, f"{job.name}-{{step}}", every_n_train_steps=job.checkpoint_every, save_top_k=-1
            ),
        ],
        check_val_every_n_epoch=None,
        val_check_interval=job.validate_every * job.accumulate or None,
        limit_val_batches=1 if job.validate_every else 0,
        num_sanity_val_steps=1 if job.validate_every else 0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        inference_mode=False,
    )
    if job.strategy != "sharded":
        trainer.strategy.checkpoint_io = EitherCheckpointIO()
    trainer.fit(module, NumberedBatches(), ckpt_path=job.ckpt_path)


def launch(*jobs: Job, timeout: float = 300) -> None:
    """Run jobs in as many processes as they ask for."""
    code, printed = attempt(*jobs, timeout=timeout)
    assert code == 0, printed[-4000:]


def attempt(*jobs: Job, timeout: float = 300) -> tuple[int, str]:
    """As ``launch``, for jobs that may fail; their exit code and what they printed."""
    path = Path(jobs[0].folder) / f"{jobs[0].name}.jobs.json"
    path.write_text(json.dumps([asdict(job) for job in jobs]))
    repository = Path(__file__).parents[2]
    paths = [str(repository), *filter(None, [os.environ.get("PYTHONPATH")])]  # this checkout, whatever is installed
    result = subprocess.run(
        [sys.executable, __file__, str(path)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": os.pathsep.join(paths)},
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    return result.returncode, result.stdout + result.stderr


if __name__ == "__main__":
    torch.set_num_threads(1)
    for arguments in json.loads(Path(sys.argv[1]).read_text()):
        run(Job(**arguments))
