"""Groups of the optimizer: the newly born structure branch may learn faster than what was pretrained."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
from rank_program import NumberedBatches, tiny_network

from reconx_pl.errors import ConfigurationError
from reconx_pl.training.module import ReconXModule
from reconx_pl.training.optimizer import OptimizerConfig
from reconx_pl.training.stages import Stage, group_of


def moved(folder: Path, multiplier: float, stage: Stage = Stage.structure) -> tuple[dict[str, float], list[float]]:
    """How far one step moved each trained tensor, and the rates of the optimizer's groups."""
    module = ReconXModule(tiny_network(), stage, OptimizerConfig(lr=1e-3, structure_multiplier=multiplier))
    before = {name: p.detach().clone() for name, p in module.network.named_parameters() if p.requires_grad}
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=1,
        limit_val_batches=0,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, NumberedBatches())
    after = dict(module.network.named_parameters())
    rates = [group["lr"] for group in trainer.optimizers[0].param_groups]
    return {name: float((after[name].detach() - value).abs().mean()) for name, value in before.items()}, rates


def test_the_structure_branch_moves_as_much_faster_as_it_is_told(tmp_path: Path) -> None:
    plain, rates = moved(tmp_path, 1.0)
    faster, two_rates = moved(tmp_path, 5.0)
    assert len(rates) == 1 and two_rates == pytest.approx([1e-3, 5e-3])
    ratios = {name: faster[name] / plain[name] for name in plain if plain[name] > 1e-6}
    assert {group_of(name) for name in ratios} == {"structure", "spatial", "image_attention"}
    for name, ratio in ratios.items():
        assert ratio == pytest.approx(5.0 if group_of(name) == "structure" else 1.0, rel=0.05), name


def test_a_stage_without_structure_has_one_group(tmp_path: Path) -> None:
    assert len(moved(tmp_path, 5.0, Stage.image_attention)[1]) == 1


def test_the_multiplier_is_positive() -> None:
    with pytest.raises(ConfigurationError, match="structure_multiplier"):
        OptimizerConfig(structure_multiplier=0.0)
