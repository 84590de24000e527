"""Emulated bfloat16 is told, since nobody would guess why a run takes many times as long."""

import pytest
import torch
from lightning.pytorch import Trainer

from reconx_pl.cli.train import emulates_bfloat16


@pytest.mark.parametrize(
    ("precision", "capability", "told"),
    [("bf16-mixed", "AVX2", True), ("bf16-mixed", "AVX512", False), ("32-true", "AVX2", False)],
)
def test_emulated_bfloat16_is_noticed(
    precision: str, capability: str, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    trainer = Trainer(accelerator="cpu", devices=1, precision=precision, logger=False, enable_checkpointing=False)
    assert emulates_bfloat16(trainer) is told
