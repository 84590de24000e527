"""The data module under a real trainer: position, places of the ranks, early errors."""

from __future__ import annotations

import subprocess
import sys
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule, Trainer
from shard_clips import POINTS, corrupt_jpeg, edit_members, pack_numbers

from reconx_pl.data.datamodule import ShardDataModule
from reconx_pl.data.shards.stream import ClipStream, read_clips
from reconx_pl.errors import BadDataError, ConfigurationError
from reconx_pl.types import ClipBatch


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    train, val = tmp_path_factory.mktemp("train"), tmp_path_factory.mktemp("val")
    pack_numbers(train, 14)
    pack_numbers(val, 5)
    return str(train), str(val)


class Recorder(LightningModule):
    """Has one weight and notes which clips it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.trained: list[list[str]] = []
        self.validated: list[list[str]] = []

    def training_step(self, batch: ClipBatch, index: int) -> torch.Tensor:
        self.trained.append(batch["key"])
        assert batch["frames"].dtype == torch.uint8
        return self.weight * batch["frames"].float().mean()

    def validation_step(self, batch: ClipBatch, index: int) -> None:
        self.validated.append(batch["key"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def fit(data: ShardDataModule, checkpoint: Path | None = None, **arguments: Any) -> tuple[Recorder, Trainer]:
    module = Recorder()
    settings = {"check_val_every_n_epoch": None, "max_epochs": -1, "logger": False, "accelerator": "cpu"}
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(**{**settings, **quiet, **arguments})
    trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    return module, trainer


def expected(folder: str, count: int, start: int = 0, **arguments: Any) -> list[list[str]]:
    stream = ClipStream(folder, start_batch=start, points=POINTS, **arguments)
    return [batch["key"] for batch in islice(stream, count)]


def module_of(folders: tuple[str, str], **arguments: Any) -> ShardDataModule:
    return ShardDataModule(*folders, points=POINTS, **arguments)


def test_training_and_validation(folders: tuple[str, str]) -> None:
    module, _ = fit(module_of(folders, batch_size=2), max_steps=4, val_check_interval=2, num_sanity_val_steps=0)
    assert module.trained == expected(folders[0], 4, batch_size=2)
    assert module.validated == [["clip-000", "clip-001"], ["clip-002", "clip-003"], ["clip-004"]] * 2


def test_without_validation(folders: tuple[str, str]) -> None:
    data = ShardDataModule(folders[0], points=POINTS)
    module, _ = fit(data, max_steps=2)
    assert len(module.trained) == 2 and module.validated == []
    with pytest.raises(ConfigurationError, match="`val`"):
        data.clips("val")


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("workers", [0, 2])
def test_resume_from_a_checkpoint(folders: tuple[str, str], tmp_path: Path, accumulate: int, workers: int) -> None:
    arguments = {"accumulate_grad_batches": accumulate, "num_sanity_val_steps": 0, "limit_val_batches": 0}

    def data() -> ShardDataModule:
        return module_of(folders, num_workers=workers, seed=3, batch_size=2, shuffle_buffer=4)

    whole, _ = fit(data(), max_steps=7, **arguments)
    first, trainer = fit(data(), max_steps=3, **arguments)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    rest, _ = fit(data(), tmp_path / "last.ckpt", max_steps=7, **arguments)
    assert len(whole.trained) == 7 * accumulate
    assert first.trained + rest.trained == whole.trained


@pytest.mark.parametrize("workers", [0, 2])
def test_epochs_that_a_limit_ends_do_not_repeat_the_data(folders: tuple[str, str], workers: int) -> None:
    data = module_of(folders, num_workers=workers)
    module, _ = fit(data, max_epochs=3, limit_train_batches=3, check_val_every_n_epoch=1, num_sanity_val_steps=0)
    whole, _ = fit(module_of(folders, num_workers=workers), max_steps=9, limit_val_batches=0)
    assert module.trained == whole.trained and len(module.trained) == 9
    assert len(module.validated) == 15


def test_validation_starts_no_more_workers_than_it_has_batches(folders: tuple[str, str]) -> None:
    loader = module_of(folders, num_workers=8, batch_size=4).val_dataloader()
    assert loader.loader.num_workers == 2 and len(loader) == 2


def test_global_generator_is_left_alone(folders: tuple[str, str]) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    next(iter(module_of(folders).train_dataloader()))
    assert torch.equal(torch.get_rng_state(), before)


def test_places_of_the_ranks(folders: tuple[str, str]) -> None:
    data = module_of(folders)
    step = {"global_step": 5, "accumulate_grad_batches": 2}
    device = torch.device("cpu")
    plain = SimpleNamespace(root_device=device)
    data.trainer = SimpleNamespace(global_rank=1, world_size=2, strategy=plain, **step)
    assert next(iter(data.train_dataloader()))["key"] == expected(folders[0], 1, 10, rank=1, world=2)[0]
    # four processes of which two at a time work on one batch
    split = SimpleNamespace(root_device=device, distributed_sampler_kwargs={"rank": 1, "num_replicas": 2})
    data.trainer = SimpleNamespace(global_rank=3, world_size=4, strategy=split, **step)
    assert next(iter(data.train_dataloader()))["key"] == expected(folders[0], 1, 10, rank=1, world=2)[0]
    assert [batch["key"][0] for batch in data.val_dataloader()] == ["clip-003", "clip-004", "clip-004"]


def test_too_many_workers_are_refused_before_they_start(folders: tuple[str, str]) -> None:
    with pytest.raises(ConfigurationError, match=r"5 shards cannot feed 6 readers.*num_workers=5"):
        module_of(folders, num_workers=6).train_dataloader()


def test_setup_finds_damaged_shards(tmp_path: Path, folders: tuple[str, str]) -> None:
    pack_numbers(tmp_path, 6)
    path = tmp_path / "shard-000001.tar"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(BadDataError, match=r"shard-000001\.tar has 5000 bytes.*truncated"):
        ShardDataModule(folders[0], str(tmp_path)).setup("fit")
    with pytest.raises(BadDataError, match=r"shard-000001\.tar"):
        ShardDataModule("nowhere", str(tmp_path)).setup("validate")
    ShardDataModule("nowhere", folders[1]).setup("test")  # needs no training shards
    with pytest.raises(BadDataError, match="nowhere: no such folder.*reconx pack"):
        ShardDataModule("nowhere", folders[1]).setup("fit")


def test_too_many_bad_clips_end_the_run_through_a_worker(tmp_path: Path) -> None:
    pack_numbers(tmp_path, 6)
    edit_members(tmp_path, "clip-002", corrupt_jpeg)
    data = ShardDataModule(str(tmp_path), points=4, num_workers=1, max_bad_share=0.0)
    with pytest.raises(BadDataError, match=r"shard-000000\.tar: clip clip-002, frame 1"):
        fit(data, max_steps=20)


def test_val_clips_are_complete(folders: tuple[str, str]) -> None:
    data = module_of(folders)
    clips = list(data.clips("val", 2))
    assert [clip.key for clip in clips] == ["clip-000", "clip-001"]
    assert clips[0].depth is not None and clips[0].cloud is not None and len(clips[0].cloud) == POINTS
    assert len(list(data.clips("val"))) == len(list(read_clips(folders[1])))


def test_arguments_from_the_command_line(folders: tuple[str, str]) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ShardDataModule, "data")
    parsed = parser.parse_args([f"--data.train={folders[0]}", "--data.num_workers=1", "--data.max_bad_share=0.5"])
    data = parser.instantiate_classes(parsed).data
    assert (data.train, data.val, data.num_workers, data.max_bad_share) == (folders[0], None, 1, 0.5)
    text = " ".join(parser.format_help().split())
    assert "folder of the training shards" in text and "larger share of the clips cannot be read" in text


def test_a_program_ends_in_the_middle_of_an_iteration(tmp_path: Path) -> None:
    """The readers ignore the signal by which Python asks its processes to end."""
    pack_numbers(tmp_path, 6)
    program = (
        "from reconx_pl.data.datamodule import ShardDataModule\n"
        f"data = ShardDataModule({str(tmp_path)!r}, {str(tmp_path)!r}, num_workers=1, points=4)\n"
        "running = [iter(data.train_dataloader()), iter(data.val_dataloader())]\n"
        "print(*(len(next(iterator)['key']) for iterator in running))\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0 and result.stdout == "1 1\n", result.stderr[-2000:]
