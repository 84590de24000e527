"""The configs parse, say what the paper says, and name the folders that the steps before them write."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from command_parsers import ROOT, fit_config, train_parser
from jsonargparse import Namespace

from benchmarks.procedural_v1 import ARMS, RECIPES, SETS, TRAIN_SEED, VAL_CLIPS, VAL_SEED
from reconx_pl.cli.evaluate_command import build_evaluate_parser
from reconx_pl.cli.main import build_parser
from reconx_pl.diffusion.conditioning.render_config import RenderConfig
from reconx_pl.diffusion.config import UNetConfig
from reconx_pl.diffusion.sampling.extrapolation import ExtrapolationConfig
from reconx_pl.files.configs import read_config
from reconx_pl.reconstruction.orbit_windows import OrbitConfig

DEMO = ("demo/stage1", "demo/stage2")
MINI = ("mini/64", "mini/128", "mini/256")
PROCEDURAL = tuple(f"procedural_v1/{name}" for name in ("base", "structure", "render", "both"))
GUIDED = ("stage2_render", "stage2_both")
TRAINED = (*DEMO, *MINI, "mini/256_both", "stage1", "stage2", *GUIDED, "extrapolation", *PROCEDURAL)
LAYERS = ("model/full", "model/demo", "model/mini", "trainer/run", "trainer/gpu", "trainer/cpu", "trainer/small")
OVERLAYS = ("trainer/fsdp", "trainer/profile", "slurm", "procedural_v1/gpu")


def unet(config: Namespace) -> UNetConfig:
    return UNetConfig(**config.model.network.init_args.unet)


def run_folder(config: Namespace) -> str:
    logger = config.trainer.logger.init_args
    return f"{logger.save_dir}/{logger.name}"


def exported(config: Namespace) -> str:
    """Where the run writes its weights."""
    (export,) = [c for c in config.trainer.callbacks if c.class_path.endswith("ExportWeights")]
    assert export.init_args.path is None  # in the run's folder
    return f"{run_folder(config)}/weights.safetensors"


def test_every_config_is_tested() -> None:
    configs = ROOT / "configs"
    found = {path.relative_to(configs).with_suffix("").as_posix() for path in configs.rglob("*.yaml")}
    assert found == {*TRAINED, *LAYERS, *OVERLAYS, "demo/evaluate", "demo/reconstruct", "fit_cpu", "reconstruct_cpu"}


@pytest.mark.parametrize("name", TRAINED)
def test_a_stage_is_a_screenful_over_its_layers(name: str) -> None:
    path = ROOT / "configs" / f"{name}.yaml"
    assert len(path.read_text().splitlines()) <= 30
    whole = read_config(path)
    assert "base" not in whole and whole["model"]["network"]["class_path"].endswith(".ReconXDiffusion")
    assert {"seed_everything", "model", "data", "trainer", "ckpt_path"} == whole.keys()
    needed = {"max_steps", "precision", "accelerator", "logger", "callbacks", "val_check_interval"}
    assert needed <= whole["trainer"].keys()


def test_print_config_shows_the_whole(capsys: pytest.CaptureFixture[str]) -> None:
    """What it prints is a config in itself."""
    with pytest.raises(SystemExit):
        train_parser().parse_args(["fit", "-c", str(ROOT / "configs" / "extrapolation.yaml"), "--print_config"])
    printed = capsys.readouterr().out
    content, whole = yaml.safe_load(printed), read_config(ROOT / "configs" / "extrapolation.yaml")
    assert "base" not in content and "base" not in content["model"]
    assert content["model"]["network"]["init_args"]["unet"]["channel_mult"] == [1, 2, 4, 4]
    shown, meant = ([one["class_path"] for one in each["trainer"]["callbacks"]] for each in (content, whole))
    assert shown == meant
    assert train_parser().parse_args(["fit", "-c", printed]).fit.model == fit_config("extrapolation").model


@pytest.mark.parametrize(
    ("name", "steps", "rate", "stage"),
    [("stage1", 2_000, 1e-4, "image_attention"), ("stage2", 30_000, 1e-5, "structure")],
)
def test_stages_are_those_of_the_paper(name: str, steps: int, rate: float, stage: str) -> None:
    config = fit_config(name)
    assert config.trainer.max_steps == steps
    assert (config.model.optimizer.lr, config.model.stage.value) == (rate, stage)
    assert unet(config) == UNetConfig.dynamicrafter_512(activation_checkpointing=True)
    structure = config.model.network.init_args.structure
    assert (structure.points, structure.tokens) == (16384, 2048)
    # Stage 1 has no structure condition: it trains on clips without a cloud as well.
    assert config.data.points == (structure.points if stage == "structure" else 0)


def test_extrapolation_is_stage_2_but_for_the_second_condition() -> None:
    stage2, extrapolation = fit_config("stage2"), fit_config("extrapolation")
    assert extrapolation.model.network == stage2.model.network and extrapolation.data == stage2.data
    assert (extrapolation.model.stage, extrapolation.model.optimizer) == (stage2.model.stage, stage2.model.optimizer)
    assert {fit_config(name).model.extrapolation for name in TRAINED if name != "extrapolation"} == {None}
    options = ExtrapolationConfig(**extrapolation.model.extrapolation)
    assert options.range(32) == (8, 23) and options.share < 1  # it does not forget how to interpolate
    assert 8 <= OrbitConfig().end_condition_frame <= 23 and OrbitConfig().frames == 32


@pytest.mark.parametrize("name", GUIDED)
def test_stage_2_may_be_guided_by_renders_and_is_the_same_otherwise(name: str) -> None:
    paper, guided = fit_config("stage2"), fit_config(name)
    network = guided.model.network.init_args
    assert network.guidance == name.removeprefix("stage2_")
    tokens = name == "stage2_both"
    assert (network.structure is not None) is tokens and guided.data.points == (16384 if tokens else 0)
    assert guided.model.stage.value == ("structure" if tokens else "spatial")
    assert unet(guided) == UNetConfig.dynamicrafter_512(activation_checkpointing=True, structure_guidance=tokens)
    render = RenderConfig(**network.render)
    assert render.extra_channels(4, 8) == 0 and render.holes == "masked"  # released weights fit as they are
    assert guided.model.optimizer == paper.model.optimizer and guided.trainer.max_steps == paper.trainer.max_steps
    assert paper.model.network.init_args.guidance is None and paper.model.network.init_args.render is None


@pytest.mark.parametrize(("given", "parsed"), [("false", False), ("[residual, temporal]", ("residual", "temporal"))])
def test_recomputation_by_kind_of_block_can_be_asked_for(given: str, parsed: bool | tuple[str, ...]) -> None:
    config = (
        train_parser()
        .parse_args(
            [
                *("fit", "-c", str(ROOT / "configs" / "stage1.yaml")),
                *("--model.network.init_args.unet.activation_checkpointing", given),
            ]
        )
        .fit
    )
    assert unet(config).activation_checkpointing == parsed


def test_every_stage_survives_preemption_and_bad_gradients() -> None:
    for name in TRAINED:
        callbacks = {callback.class_path.rsplit(".", 1)[1] for callback in fit_config(name).trainer.callbacks}
        assert {"PreemptionCallback", "FiniteGuard", "SafeModelCheckpoint"} <= callbacks, name


@pytest.mark.parametrize("name", [name for name in TRAINED if name not in (*DEMO, *MINI, "mini/256_both", *PROCEDURAL)])
def test_every_stage_evaluates_held_out_clips(name: str) -> None:
    """In ``validate`` and ``test``, and now and then while it trains; runs of minutes are evaluated afterwards."""
    config = fit_config(name)
    (callback,) = [one for one in config.trainer.callbacks if one.class_path.endswith(".EvaluationCallback")]
    options = callback.init_args
    assert options.during_fit and options.every_n_validations == 5 and options.out is None  # in the run's folder
    assert options.config.sheet_only and options.config.media and not options.config.ceiling
    assert (options.clips, options.config.fit.steps) == (4, 500)
    assert options.config.two_views and options.config.filled_render_splats and "lpips" in options.config.metrics


def test_slurm_goes_over_any_stage() -> None:
    configs = [str(ROOT / "configs" / name) for name in ("stage2.yaml", "trainer/fsdp.yaml", "slurm.yaml")]
    config = train_parser().parse_args(["fit", *(part for path in configs for part in ("-c", path))]).fit
    (plugin,) = config.trainer.plugins
    assert plugin.class_path.endswith("SLURMEnvironment") and plugin.init_args.auto_requeue is False
    assert config.trainer.strategy.class_path.endswith("ShardedStrategy") and config.ckpt_path == "last"
    script = (ROOT / "configs" / "slurm.sbatch").read_text()
    assert all(f"-c configs/{name}" in script for name in ("stage2.yaml", "trainer/fsdp.yaml", "slurm.yaml"))


def test_a_profile_goes_over_any_stage() -> None:
    configs = [str(ROOT / "configs" / name) for name in ("stage2.yaml", "trainer/profile.yaml")]
    config = train_parser().parse_args(["fit", *(part for path in configs for part in ("-c", path))]).fit
    assert config.trainer.profiler.class_path == "reconx_pl.training.callbacks.profile.TraceProfiler"
    assert config.trainer.max_steps == 30_000


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_arms_of_procedural_v1_differ_in_guidance_alone(recipe: str, tmp_path: Path) -> None:
    configs = {}
    for arm in ARMS:
        path = tmp_path / f"{arm}.yaml"
        path.write_text(yaml.safe_dump(RECIPES[recipe].arm(arm, seed=7)))
        configs[arm] = train_parser().parse_args(["fit", "-c", str(path)]).fit
    budgets = set()
    for arm, config in configs.items():
        network = config.model.network.init_args
        assert network.guidance == arm and config.model.stage.value == "everything"
        assert config.model.seed == config.data.seed == 7 and config.model.init_from is None
        assert exported(config) == f"{run_folder(config)}/weights.safetensors"
        assert run_folder(config).endswith(f"/{arm}-7")
        assert config.data.train.endswith("-train" if arm in ("none", "structure") else "-train-splats")
        budgets.add((config.trainer.max_steps, config.data.batch_size, config.model.optimizer.lr))
        more = 0 if network.render is None else RenderConfig(**network.render).extra_channels(48, 4)
        assert network.unet["in_channels"] == 96 + more
        own = {"in_channels", "structure_guidance"}
        plain = configs["none"].model.network.init_args.unet
        assert {k: v for k, v in network.unet.items() if k not in own} == {
            k: v for k, v in plain.items() if k not in own
        }
    assert len(budgets) == 1


def test_the_scenes_of_procedural_v1_never_overlap() -> None:
    recipe = RECIPES["cpu"]
    ranges = [range(TRAIN_SEED, TRAIN_SEED + recipe.train_clips), range(VAL_SEED, VAL_SEED + VAL_CLIPS)]
    ranges += [range(first, first + recipe.test_scenes) for _, first in SETS.values()]
    assert len(set().union(*ranges)) == sum(map(len, ranges))


def test_the_demo_tunes_reconx_mini_and_brings_the_structure_tokens_in() -> None:
    first, second = (fit_config(name) for name in DEMO)
    assert str(first.model.init_from) == "reconx-mini" and (second.model.network.init_args.guidance) == "both"
    assert [config.model.stage.value for config in (first, second)] == ["image_attention", "structure"]
    assert unet(first) == replace(unet(second), structure_guidance=False)


def test_reconx_mini_is_one_network_in_three_sizes() -> None:
    configs = [fit_config(name) for name in (*MINI, "demo/stage1")]
    assert all(config.model.network == configs[0].model.network for config in configs)
    assert all(config.model.sampling == configs[0].model.sampling for config in configs)
    makefile = (ROOT / "Makefile").read_text()
    for name, config in zip(("64", "128", "256"), configs, strict=False):
        assert (config.data.train, config.data.val) == (f"data/mini-{name}-splats", f"data/mini-{name}-val-splats")
        assert f"\nruns/mini/{name}/weights.safetensors: | data/mini-{name}/.packed data/mini-{name}-val" in makefile


@pytest.mark.parametrize("name", TRAINED)
def test_a_run_keeps_everything_in_its_folder(name: str) -> None:
    """``evaluate.py --model`` and resuming look for config, checkpoints and weights in one folder."""
    config = fit_config(name)
    folder = run_folder(config)
    assert config.trainer.logger.init_args.version == ""
    assert exported(config) == f"{folder}/weights.safetensors"
    checkpoints = [c for c in config.trainer.callbacks if c.class_path.endswith("ModelCheckpoint")]
    (options,) = [c.init_args for c in checkpoints]
    assert (options.dirpath, options.every_n_train_steps) == (None, None)  # there, and as often as it validates
    assert options.save_last == "link" and config.ckpt_path == "last"


@pytest.mark.parametrize("names", [DEMO, MINI, ("stage1", "stage2", "extrapolation")])
def test_a_stage_starts_from_the_weights_of_the_one_before(names: tuple[str, ...]) -> None:
    for before, after in zip(names, names[1:], strict=False):
        assert str(fit_config(after).model.init_from) == exported(fit_config(before))


def test_demo_reads_what_the_makefile_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    makefile = (ROOT / "Makefile").read_text()
    packed = re.findall(r"reconx procedural (\S+)", makefile)
    parsed = build_evaluate_parser().parse_args(["--config", "configs/demo/evaluate.yaml"])
    configs = [fit_config(name) for name in DEMO]
    cached = re.findall(r"reconx cache (\S+) (\S+)", makefile)
    assert {(config.data.train, config.data.val) for config in configs} == {(cached[0][1], cached[1][1])}
    assert packed[:2] == [cached[0][0], cached[1][0]]
    assert str(parsed.shards) == packed[2]
    assert [str(path) for path in parsed.logs] == [run_folder(config) for config in configs]
    assert str(parsed.model) == run_folder(configs[-1])
    assert f"{exported(configs[-1])}\n" in makefile  # the target of `make demo`
    clip = parsed.window
    assert (clip.frames, clip.height, clip.width) == (8, 128, 128)  # the size of the procedural clips


def test_fit_on_a_processor_needs_no_features() -> None:
    fit = build_parser().parse_args(["fit", "a", "--out", "b", "--config", str(ROOT / "configs" / "fit_cpu.yaml")]).fit
    assert fit.scene.fit.loss.lpips == 0 and fit.scene.fit.loss.l1 == 0.8
    assert fit.scene.fit.steps == 1000 and fit.scenes == [Path("a")]


def test_evaluate_refuses_an_option_that_does_not_exist(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    content = yaml.safe_load((ROOT / "configs" / "demo/evaluate.yaml").read_text())
    path = tmp_path / "evaluate.yaml"
    path.write_text(yaml.safe_dump({**content, "progres": 1}))
    with pytest.raises(SystemExit):
        build_evaluate_parser().parse_args(["--config", str(path)])
    assert "progres" in capsys.readouterr().err


def test_full_size_data_are_packed_by_a_documented_command() -> None:
    documented = (ROOT / "data" / "realestate10k.md").read_text()
    data = [fit_config(name).data for name in ("stage1", "stage2", "extrapolation")]
    folders = {folder for part in data for folder in (part.train, part.val, part.test) if folder is not None}
    assert folders == {"data/re10k-train", "data/re10k-test"}
    for folder in folders:
        assert re.search(rf"^reconx pack \S+ {folder} ", documented, re.MULTILINE)


def reconstruction(name: str) -> Namespace:
    arguments = ["photographs", "-o", "out", "--config", str(ROOT / "configs" / f"{name}.yaml")]
    return build_parser().parse_args(["reconstruct", *arguments]).reconstruct


def test_reconstruction_on_a_processor_needs_no_weights_of_lpips() -> None:
    config = reconstruction("reconstruct_cpu")
    assert config.fit.loss.lpips == 0 and config.short_side == 256 and config.model == "reconx-mini"


def test_the_demo_fits_photographs_as_it_evaluates() -> None:
    config = reconstruction("demo/reconstruct")
    evaluation = yaml.safe_load((ROOT / "configs/demo/evaluate.yaml").read_text())
    fit = evaluation["evaluation"]["fit"]
    assert config.model == "reconx-mini" and config.generation.frames is None, "as many as the model has"
    assert (config.fit.input_view_weight, config.fit.steps) == (fit["input_view_weight"], fit["steps"])
    assert config.fit.loss.lpips == fit["loss"]["lpips"] == 0
