"""Sharded training (FSDP2) on processor ranks: the same as training in one process, saved and loaded by any number."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from rank_program import Job, launch, run, tiny_network
from safetensors.torch import load_file
from torch import Tensor, nn

from reconx_pl.errors import BadWeightsError, ConfigurationError
from reconx_pl.training.checkpointing.consolidate import consolidate
from reconx_pl.training.checkpointing.network_weights import load_weights, own_weights
from reconx_pl.training.checkpointing.sharded_checkpoint import read_table, restore_folder
from reconx_pl.training.ema import AverageConfig, WeightAverage
from reconx_pl.training.module import ReconXModule
from reconx_pl.training.sharding import ShardedStrategy
from reconx_pl.training.stages import Stage

STEPS, HALF = 20, 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of 20 steps over the same clips: ``two`` sharded over two ranks, ``one`` in one process without sharding."""
    folder = tmp_path_factory.mktemp("runs")
    two = Job("two", str(folder), STEPS, ranks=2, checkpoint_every=HALF, validate_every=HALF)
    again = Job("again", str(folder), STEPS, ranks=2, checkpoint_every=HALF, ckpt_path=f"{folder}/two-step=10.ckpt")
    mixed = Job("mixed", str(folder), 2, ranks=2, precision="bf16-mixed", validate_every=1)
    following = Job("following", str(folder), 1, ranks=2, stage="base", init_from=f"{folder}/two-step=20.ckpt")
    launch(two, again, mixed, following)
    one = Job("one", str(folder), STEPS, strategy="auto", accumulate=2, checkpoint_every=HALF, validate_every=HALF)
    run(one)
    return folder


def facts(folder: Path, name: str, rank: int = 0) -> dict:
    return json.loads((folder / f"{name}.rank{rank}.json").read_text())


def losses(folder: Path, name: str, ranks: int) -> dict[str, float]:
    """Loss of each batch by its first clip."""
    batches = [batch for rank in range(ranks) for batch in facts(folder, name, rank)["batches"]]
    return {keys[0]: loss for _, keys, loss in batches}


def tensors(folder: Path, name: str) -> dict[str, Tensor]:
    """Weights, averages and moments at the end of a run."""
    return load_file(folder / f"{name}.safetensors")


def furthest(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    assert first.keys() == second.keys()
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first)


def test_two_ranks_train_as_one_process(folder: Path) -> None:
    two, one = losses(folder, "two", 2), losses(folder, "one", 1)
    assert len(one) == 2 * STEPS and two.keys() == one.keys()
    assert max(abs(two[key] - one[key]) for key in one) < 1e-4
    assert furthest(tensors(folder, "two"), tensors(folder, "one")) < 1e-3
    assert len(set(one.values())) == 2 * STEPS


def test_every_rank_holds_its_part_alone_and_gathers_the_rest(folder: Path) -> None:
    first, second = facts(folder, "two", 0), facts(folder, "two", 1)
    for rank in (first, second):
        assert 0.45 < rank["local"] / rank["trained"] < 0.55
        assert 0.9 < rank["moments"] / (2 * rank["local"]) < 1.1
        assert rank["collectives"]["allgather_base"] > 10 and rank["collectives"]["reduce_scatter_base"] > 5
    assert first["local"] + second["local"] == first["trained"]


def test_a_resumed_run_is_the_uninterrupted_one(folder: Path) -> None:
    for rank in (0, 1):
        whole, resumed = facts(folder, "two", rank)["batches"], facts(folder, "again", rank)["batches"]
        assert [batch[:2] for batch in resumed] == [batch[:2] for batch in whole[HALF:]]
        assert [batch[2] for batch in resumed] == pytest.approx([batch[2] for batch in whole[HALF:]], abs=1e-6)
    assert furthest(tensors(folder, "again"), tensors(folder, "two")) < 1e-6


def test_mixed_precision_keeps_float32_weights(folder: Path) -> None:
    exact, mixed = losses(folder, "two", 2), losses(folder, "mixed", 2)
    assert len(mixed) == 4
    assert mixed == pytest.approx({key: exact[key] for key in mixed}, rel=0.02) and mixed["clip0a"] != exact["clip0a"]
    saved = tensors(folder, "mixed")
    assert {tensor.dtype for tensor in saved.values() if tensor.is_floating_point()} == {torch.float32}
    rounded = saved["network.unet.time_embed.0.weight"]
    assert not torch.equal(rounded, rounded.bfloat16().float())


def test_four_ranks_load_what_two_saved(folder: Path, tmp_path: Path) -> None:
    job = Job("four", str(tmp_path), STEPS, ranks=4, ckpt_path=f"{folder}/two-step=20.ckpt")
    launch(job)
    assert facts(tmp_path, "four")["step"] == STEPS and not facts(tmp_path, "four")["batches"]
    assert facts(tmp_path, "four")["local"] < 0.3 * facts(tmp_path, "four")["trained"]
    assert furthest(tensors(tmp_path, "four"), tensors(folder, "two")) == 0
    assert any(name.startswith("ema.") for name in tensors(tmp_path, "four"))
    assert any(name.endswith("exp_avg_sq") for name in tensors(tmp_path, "four"))


def test_one_process_loads_and_goes_on_without_sharding(folder: Path, tmp_path: Path) -> None:
    path = f"{folder}/two-step=20.ckpt"
    run(Job("loaded", str(tmp_path), STEPS, strategy="auto", accumulate=2, ckpt_path=path))
    assert furthest(tensors(tmp_path, "loaded"), tensors(folder, "two")) == 0
    half = f"{folder}/two-step=10.ckpt"
    run(Job("gone_on", str(tmp_path), STEPS, strategy="auto", accumulate=2, ckpt_path=half))
    assert furthest(tensors(tmp_path, "gone_on"), tensors(folder, "two")) < 1e-3


def test_one_sharded_process_goes_on_from_either_form(folder: Path, tmp_path: Path) -> None:
    settings = {"accumulate": 2, "ranks": 1}
    from_folder = Job("a", str(tmp_path), STEPS, ckpt_path=f"{folder}/two-step=20.ckpt", **settings)
    from_file = Job("b", str(tmp_path), STEPS, ckpt_path=f"{folder}/one-step=20.ckpt", **settings)
    # and it may generate before it trains
    path = f"{folder}/one-step=10.ckpt"
    further = Job("c", str(tmp_path), HALF + 2, ckpt_path=path, generate_first=True, **settings)
    launch(from_folder, from_file, further)
    assert furthest(tensors(tmp_path, "a"), tensors(folder, "two")) == 0
    assert furthest(tensors(tmp_path, "b"), tensors(folder, "one")) == 0
    expected = losses(folder, "one", 1)
    seen = losses(tmp_path, "c", 1)
    assert len(seen) == 4 and seen == pytest.approx({key: expected[key] for key in seen}, abs=1e-6)


def test_the_next_stage_starts_from_either_form(folder: Path, tmp_path: Path) -> None:
    sharded, single, out = folder / "two-step=20.ckpt", folder / "one-step=20.ckpt", tmp_path / "out.safetensors"
    consolidate(sharded, out)
    final = {name: t for name, t in tensors(folder, "two").items() if name.startswith("network.")}
    for source in (sharded, out):
        network = tiny_network()
        load_weights(network, source)
        assert furthest({f"network.{name}": t for name, t in own_weights(network).items()}, final) == 0
    network = tiny_network()
    load_weights(network, single)
    assert 0 < furthest({f"network.{name}": t for name, t in own_weights(network).items()}, final) < 1e-3
    # two ranks were started from the folder, with another set of trained parameters; one process from the file
    run(Job("following_one", str(tmp_path), 1, strategy="auto", accumulate=2, stage="base", init_from=str(out)))
    assert furthest(tensors(folder, "following"), tensors(tmp_path, "following_one")) < 1e-4


def test_averages_come_out_of_a_checkpoint_when_they_are_asked_for(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "averaged.safetensors"
    consolidate(folder / "two-step=20.ckpt", out, ema=True)
    written, last = load_file(out), tensors(folder, "two")
    averaged = [name for name in written if f"ema.{name}" in last]
    assert averaged and all(torch.equal(written[name], last[f"ema.{name}"]) for name in averaged)
    assert any(not torch.equal(written[name], last[f"network.{name}"]) for name in averaged)
    rest = written.keys() - set(averaged)
    assert rest and all(torch.equal(written[name], last[f"network.{name}"]) for name in rest)


def test_what_is_missing_in_a_folder_is_named(folder: Path) -> None:
    network = nn.ModuleDict({"unet": nn.ModuleDict({"novel": nn.Linear(2, 2)})})
    with pytest.raises(BadWeightsError, match=r"(?i)missing.*: unet.novel.bias, unet.novel.weight"):
        load_weights(network, folder / "two-step=20.ckpt")


def test_a_stage_is_not_resumed_from_another_ones_checkpoint(folder: Path) -> None:
    module = ReconXModule(tiny_network(), Stage.base, ema=AverageConfig())
    module.ema = WeightAverage(module.network, AverageConfig())
    with pytest.raises(BadWeightsError, match=r"step=20.ckpt does not fit the model; tensors \d+ missing: ema\."):
        restore_folder(folder / "two-step=20.ckpt", module, None, None)
    same = ReconXModule(tiny_network(), Stage.structure, ema=AverageConfig())
    same.ema = WeightAverage(same.network, AverageConfig())
    fewer = {p: f"network.{name}" for name, p in same.network.named_parameters() if "time_embed" in name}
    optimizer = torch.optim.AdamW(fewer)
    with pytest.raises(BadWeightsError, match="trained other parameters than this run does.*model.init_from"):
        restore_folder(folder / "two-step=20.ckpt", same, optimizer, fewer)


def test_no_tensor_of_a_checkpoint_is_a_pickle(folder: Path) -> None:
    table = read_table(folder / "two-step=20.ckpt")  # refuses whatever is not a tensor
    assert {name.split("/")[0] for name in table} == {"model", "optimizer"}


def test_a_trained_parameter_that_is_not_sharded_is_an_error() -> None:
    module = ReconXModule(tiny_network(), Stage.structure)
    strategy = ShardedStrategy()
    strategy._lightning_module = module
    with pytest.raises(ConfigurationError, match=r"not sharded: network\.unet\.time_embed\.0\.weight"):
        strategy.setup(Trainer(accelerator="cpu", logger=False))
    module.network.requires_grad_(False)
    with pytest.raises(ConfigurationError, match="set trainer.inference_mode to false"):
        strategy.setup(Trainer(accelerator="cpu", logger=False))


def test_a_folder_without_its_end_is_refused(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.ckpt"
    shutil.copytree(folder / "two-step=10.ckpt", broken)
    (broken / "meta.pt").unlink()
    with pytest.raises(FileNotFoundError, match="not a complete checkpoint"):
        run(Job("broken", str(tmp_path), STEPS, strategy="auto", ckpt_path=str(broken)))
