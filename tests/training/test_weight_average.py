"""The moving average of the weights: what it is, who uses it, and that it leaves the weights alone."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rank_program import Job, run, tiny_network
from safetensors.torch import load_file
from torch import Tensor, nn

from reconx_pl.errors import BadWeightsError, ConfigurationError
from reconx_pl.training.callbacks.callbacks import ExportWeights
from reconx_pl.training.checkpointing.consolidate import checkpoint_weights
from reconx_pl.training.checkpointing.network_weights import load_weights
from reconx_pl.training.ema import AverageConfig, WeightAverage
from reconx_pl.training.module import ReconXModule
from reconx_pl.training.stages import Stage


def part_frozen() -> nn.Module:
    network = nn.ModuleDict({"a": nn.Linear(3, 2), "b": nn.ModuleDict({"c": nn.Linear(2, 2)})})
    network["a"].requires_grad_(False)
    return network


def copies(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def test_the_decay_warms_up() -> None:
    config = AverageConfig(decay=0.5)
    assert [config.decay_at(step) for step in (1, 2, 8, 1000)] == [2 / 11, 3 / 12, 0.5, 0.5]
    assert AverageConfig(decay=0.5, warmup=False).decay_at(1) == 0.5
    with pytest.raises(ConfigurationError, match=r"ema.decay lies in \[0, 1\), got 1"):
        AverageConfig(decay=1)


def test_the_average_is_that_of_the_trained_parameters() -> None:
    network = part_frozen()
    average = WeightAverage(network, AverageConfig(decay=0.75, warmup=False))
    assert set(average.state_dict()) == {"b.c.weight", "b.c.bias"}
    assert not any(parameter.requires_grad for parameter in average.parameters())
    expected = network["b"]["c"].weight.detach().clone()
    for step in (1, 2, 3):
        with torch.no_grad():
            network["b"]["c"].weight.add_(step)
        average.update(network, step)
        expected = 0.75 * expected + 0.25 * network["b"]["c"].weight.detach()
    assert torch.allclose(average.state_dict()["b.c.weight"], expected, atol=1e-6)


def test_weights_come_back_to_the_bit_also_after_an_error() -> None:
    network = part_frozen()
    average = WeightAverage(network, AverageConfig(decay=0.1, warmup=False))
    with torch.no_grad():
        network["b"]["c"].weight.mul_(1 / 3)
    weights, averages = copies(network), copies(average)
    with pytest.raises(ZeroDivisionError), average.swapped(network):
        assert torch.equal(network["b"]["c"].weight, averages["b.c.weight"])
        with average.swapped(network):  # within itself nothing more happens
            assert torch.equal(network["b"]["c"].weight, averages["b.c.weight"])
        assert torch.equal(network["b"]["c"].weight, averages["b.c.weight"])
        raise ZeroDivisionError
    assert all(torch.equal(weights[name], tensor) for name, tensor in network.state_dict().items())
    assert all(torch.equal(averages[name], tensor) for name, tensor in average.state_dict().items())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps, the same run stopped after three and resumed, and one without an average."""
    folder = tmp_path_factory.mktemp("average")
    settings: dict[str, Any] = {"strategy": "auto", "checkpoint_every": 3, "validate_every": 3}
    run(Job("whole", str(folder), 6, **settings))
    run(Job("resumed", str(folder), 6, ckpt_path=f"{folder}/whole-step=3.ckpt", **settings))
    run(Job("without", str(folder), 6, ema=False, **settings))
    return folder


def test_a_resumed_run_has_the_same_average_to_the_bit(folder: Path) -> None:
    whole, resumed = (load_file(folder / f"{name}.safetensors") for name in ("whole", "resumed"))
    averages = [name for name in whole if name.startswith("ema.")]
    assert averages and whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert any(not torch.equal(whole[name], whole[name.replace("ema.", "network.", 1)]) for name in averages)


def test_an_average_changes_validation_and_nothing_in_training(folder: Path) -> None:
    whole, without = (json.loads((folder / f"{name}.rank0.json").read_text()) for name in ("whole", "without"))
    assert whole["batches"] == without["batches"]
    assert abs(whole["val"] - without["val"]) > 1e-5


def module_of(folder: Path, name: str) -> ReconXModule:
    module = ReconXModule(tiny_network(), Stage.structure, ema=AverageConfig())
    module.ema = WeightAverage(module.network, AverageConfig())
    module.load_state_dict(torch.load(folder / f"{name}-step=6.ckpt", weights_only=True)["state_dict"])
    return module


@pytest.mark.parametrize("ema", [True, False])
def test_the_export_holds_the_average_if_wanted(folder: Path, tmp_path: Path, ema: bool) -> None:
    module, path = module_of(folder, "whole"), tmp_path / "weights.safetensors"
    trainer: Any = SimpleNamespace(max_steps=6, global_step=6, is_global_zero=True)
    before = copies(module.network)
    ExportWeights(path, ema=ema).on_fit_end(trainer, module)
    exported, expected = load_file(path), checkpoint_weights(folder / "whole-step=6.ckpt", average=ema)
    assert exported.keys() == expected.keys()
    assert all(torch.equal(exported[name], expected[name]) for name in exported)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.network.state_dict().items())


def test_an_average_that_is_not_there_is_an_error(folder: Path) -> None:
    with pytest.raises(BadWeightsError, match="without-step=6.ckpt holds no average"):
        load_weights(tiny_network(), folder / "without-step=6.ckpt", average=True)
    settings: dict[str, Any] = {"strategy": "auto"}
    with pytest.raises(BadWeightsError, match="no average of the weights and model.ema asks for one"):
        run(Job("x", str(folder), 6, ckpt_path=f"{folder}/without-step=6.ckpt", **settings))
    with pytest.raises(BadWeightsError, match="has an average of the weights"):
        run(Job("x", str(folder), 6, ema=False, ckpt_path=f"{folder}/whole-step=6.ckpt", **settings))
