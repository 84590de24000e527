"""procedural-v1: which guidance helps, at equal budget, with exact geometry? (ReconX, IV-A, proposition 1)

``python -m benchmarks.procedural_v1`` makes the scenes, trains, scores and prints the table; every step goes on where
it was stopped. Each arm is trained from nothing with each seed, on the same clips in the same order, for the same
number of steps: without guidance, with the paper's structure tokens, with renders, with both. All generate and fit the
same held-out scenes, *easy* views (gap 1) and *hard* ones (gap 3), once for the true cameras and once for interpolated
ones.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.condition_alone import ConditionAlone
from reconx_pl.data.procedural import write_procedural
from reconx_pl.data.shards.stream import read_clips
from reconx_pl.diffusion.conditioning.render_config import RenderConfig
from reconx_pl.evaluation.runner import evaluate_scenes
from reconx_pl.evaluation.settings import EvaluationConfig
from reconx_pl.files.configs import merged, read_config
from reconx_pl.files.json_files import read_json
from reconx_pl.splatting.fit import FitConfig
from reconx_pl.splatting.losses import LossWeights
from reconx_pl.training.precompute import cache_shards

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "procedural_v1"
ARMS = {"none": "base", "structure": "structure", "render": "render", "both": "both"}  # arm -> its config
CAMERAS = {"true": "dataset", "interpolated": "interpolated"}  # of the frames -> pose policy
SETS = {"easy": (1.0, 12_000_000), "hard": (3.0, 13_000_000)}  # gap, first seed
TRAIN_SEED, VAL_SEED, VAL_CLIPS, MAX_GAP, CLIPS_PER_SHARD = 10_000_000, 11_000_000, 32, 3.0, 64
STEPS = ["scenes", "train", "score", "table"]
FLOORS = {  # method of a record -> row of the table: what knows no model
    "nearest_input": "nearest input view",
    "two_views": "3DGS of the two views",
    "filled_render": "filled render",
    "filled_render_splats": "3DGS of filled renders",
}
TRAINED = {"generated": "generated", "reconx": "3DGS"}
CONDITION = "condition alone"  # a floor as well: what the arm `render` adds its prediction to


@dataclass(frozen=True)
class Recipe:
    """Sizes of the benchmark: the arms' configs have those of the model."""

    overlay: Path | None  # over every arm
    size: int  # rows and columns of a frame, pixels
    frames: int
    points: int
    train_clips: int
    test_scenes: int  # of each set
    fit: tuple[str, ...]  # options of evaluate.py
    folder: str  # in data/, before the name of a set

    def arm(self, arm: str, seed: int) -> dict[str, Any]:
        """The config of one run."""
        config = read_config(CONFIGS / f"{ARMS[arm]}.yaml")
        if self.overlay is not None:
            config = merged(config, read_config(self.overlay))
        config["seed_everything"] = seed  # of weights, data and noise
        config["trainer"]["logger"]["init_args"]["name"] = f"{arm}-{seed}"
        for name in ("train", "val"):
            made = Path(config["data"][name]).name
            config["data"][name] = f"data/{self.folder}{made.removeprefix('pv1')}"
        return config

    def evaluation(self, policy: str) -> EvaluationConfig:
        """Settings of an evaluation without floors; ``fit`` says the same to evaluate.py."""
        return EvaluationConfig(
            fit=FitConfig(steps=200, loss=LossWeights(lpips=0.0)) if self.fit else FitConfig(),
            pose_policy=policy,
            two_views=False,
            nearest_input=False,
            filled_render=False,
            filled_render_splats=False,
            media=False,
        )

    @cached_property
    def runs(self) -> Path:
        return Path(self.arm("none", 0)["trainer"]["logger"]["init_args"]["save_dir"])

    def shards(self, name: str) -> Path:
        return Path("data") / f"{self.folder}-{name}"


RECIPES = {
    "cpu": Recipe(None, 64, 8, 2048, 1024, 12, ("--evaluation.fit.steps=200", "--evaluation.fit.loss.lpips=0"), "pv1"),
    "gpu": Recipe(CONFIGS / "gpu.yaml", 256, 16, 8192, 16384, 64, (), "pv1-256"),
}


def make_scenes(recipe: Recipe) -> None:
    """Shards of training, validation and test scenes; their seeds never overlap."""

    def write(name: str, count: int, first: int, gap: float, max_gap: float) -> None:
        done = write_procedural(
            recipe.shards(name),
            count,
            first,
            frames=recipe.frames,
            size=(recipe.size, recipe.size),
            points=recipe.points,
            gap=gap,
            max_gap=max_gap,
            clips_per_shard=CLIPS_PER_SHARD,
        )
        print(f"{recipe.shards(name)}: {done} scenes made, {count - done} were there", flush=True)

    write("train", recipe.train_clips, TRAIN_SEED, 1.0, MAX_GAP)
    write("val", VAL_CLIPS, VAL_SEED, 1.0, MAX_GAP)
    for name, (gap, first) in SETS.items():
        write(name, recipe.test_scenes, first, gap, 0.0)
    for name in ("train", "val"):  # short fits, which the arms with renders read
        cache_shards(recipe.shards(name), recipe.shards(f"{name}-splats"), CONFIGS / f"{ARMS['render']}.yaml")


def run_all(commands: Sequence[list[str]], jobs: int, logs: Path) -> None:
    """Run commands, ``jobs`` at a time, each with its own log; the first that fails ends the benchmark."""
    logs.mkdir(parents=True, exist_ok=True)
    threads = max(1, (os.cpu_count() or 1) // jobs)
    environment = {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(threads), **os.environ}
    waiting = list(commands)
    running: dict[subprocess.Popen[bytes], Path] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            command = waiting.pop(0)
            log = logs / f"{Path(command[-1]).stem}.log"
            with log.open("a", encoding="utf-8") as stream:
                running[subprocess.Popen(command, stdout=stream, stderr=stream, env=environment)] = log
            print(f"started, log in {log}: {' '.join(command)}", flush=True)
        for process in [one for one in running if one.poll() is not None]:
            log = running.pop(process)
            if process.returncode:
                for other in running:
                    other.terminate()
                sys.exit(f"a command failed; read {log}, mend it, and run this again to go on")
        time.sleep(1)


def train(recipe: Recipe, arms: Sequence[str], seeds: Sequence[int], jobs: int, precision: str | None) -> None:
    """Every arm with every seed."""
    commands = []
    for seed in seeds:
        for arm in arms:
            if (recipe.runs / f"{arm}-{seed}" / "weights.safetensors").exists():
                continue
            config = recipe.arm(arm, seed)
            if precision is not None:
                config["trainer"]["precision"] = precision
            path = recipe.runs / "configs" / f"{arm}-{seed}.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
            commands.append([sys.executable, "train.py", "fit", "-c", str(path)])
    run_all(commands, jobs, recipe.runs / "logs")


def score(recipe: Recipe, arms: Sequence[str], seeds: Sequence[int], jobs: int) -> None:
    """Generate, fit and score the held-out scenes with every run; what needs no model is done with the first alone."""
    commands = []
    for seed in seeds:
        for arm in arms:
            for cameras, policy in CAMERAS.items():
                for name in SETS:
                    done = read_json(results_folder(recipe, arm, seed, name, cameras) / "results.json")
                    if done is not None and done["complete"]:
                        continue
                    first = (seed, arm) == (seeds[0], arms[0])
                    floors = FLOORS if first else ()
                    commands.append(
                        [
                            *(sys.executable, "evaluate.py", "--model", str(recipe.runs / f"{arm}-{seed}")),
                            *("--shards", str(recipe.shards(name)), f"--evaluation.pose_policy={policy}", *recipe.fit),
                            f"--evaluation.two_views={'two_views' in floors}",
                            f"--evaluation.nearest_input={'nearest_input' in floors}",
                            f"--evaluation.filled_render={'filled_render' in floors}",
                            f"--evaluation.filled_render_splats={'filled_render_splats' in floors}",
                            f"--evaluation.media={seed == seeds[0]}",
                            *("--out", str(results_folder(recipe, arm, seed, name, cameras))),
                        ]
                    )
    run_all(commands, jobs, recipe.runs / "logs")
    described = recipe.arm("render", 0)["model"]["network"]["init_args"]
    condition = ConditionAlone(RenderConfig(**described["render"]), described["autoencoder"]["init_args"]["factor"])
    for cameras, policy in CAMERAS.items():
        for name in SETS:
            evaluate_scenes(
                read_clips(recipe.shards(name)),
                condition,
                recipe.evaluation(policy),
                recipe.runs / "results" / f"condition-{name}-{cameras}",
                model=condition.identity,
            )


def results_folder(recipe: Recipe, arm: str, seed: int, name: str, cameras: str) -> Path:
    return recipe.runs / "results" / f"{arm}-{seed}-{name}-{cameras}"


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean and standard deviation over seeds."""
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


def table(recipe: Recipe, arms: Sequence[str], seeds: Sequence[int]) -> Iterator[str]:
    """Lines of Markdown: the scores of both sets and both kinds of cameras, and the curves of the validation loss."""
    for name in SETS:
        for cameras in CAMERAS:
            yield from _scores(recipe, arms, seeds, name, cameras)
    yield "\n**Validation loss** (not comparable between arms whose networks predict a residual and others)\n"
    curves = {arm: [validation_loss(recipe.runs / f"{arm}-{seed}") for seed in seeds] for arm in arms}
    steps = sorted(set.intersection(*(set(curve) for arm in arms for curve in curves[arm])))
    yield f"| step | {' | '.join(str(step + 1) for step in steps)} |"
    yield f"|---|{'---:|' * len(steps)}"
    for arm in arms:
        yield f"| {arm} | {' | '.join(spread([curve[step] for curve in curves[arm]], 5) for step in steps)} |"


def _scores(recipe: Recipe, arms: Sequence[str], seeds: Sequence[int], name: str, cameras: str) -> Iterator[str]:
    results = {
        (arm, seed): read_json(results_folder(recipe, arm, seed, name, cameras) / "results.json") or {"complete": False}
        for arm in arms
        for seed in seeds
    }
    if not all(one["complete"] for one in results.values()):
        yield f"\n{name}, {cameras} cameras: not complete; run `score` again"
        return
    first = results[arms[0], seeds[0]]
    metrics = [metric for metric in first["metrics"] if metric not in first["absent"]]
    share = 100 * first["coverage"]["share"]
    yield f"\n**{name}, {cameras} cameras**, {first['finished']} scenes, {len(seeds)} seeds; {share:.1f} % covered\n"
    yield f"| | {' | '.join(metrics)} | psnr, covered | psnr, uncovered |"
    yield f"|---|{'---:|' * (len(metrics) + 2)}"
    for method, title in FLOORS.items():
        if method in first["mean"]:
            yield f"| {title} | {' | '.join(_cells([first], method, metrics))} |"
    condition = read_json(recipe.runs / "results" / f"condition-{name}-{cameras}" / "results.json")
    for method, title in TRAINED.items():
        if condition is not None and condition["complete"]:
            yield f"| {title}, {CONDITION} | {' | '.join(_cells([condition], method, metrics))} |"
        for arm in arms:
            ran = [results[arm, seed] for seed in seeds]
            yield f"| {title}, {arm} | {' | '.join(_cells(ran, method, metrics))} |"


def _cells(results: Sequence[dict[str, Any]], method: str, metrics: Sequence[str]) -> list[str]:
    digits = {"psnr": 2}
    cells = [spread([one["mean"][method][metric] for one in results], digits.get(metric, 3)) for metric in metrics]
    for part in ("covered", "uncovered"):
        values = [one[f"mean_{part}"].get(method, {}).get("psnr") for one in results]
        cells.append(spread(values) if None not in values else "")
    return cells


def validation_loss(run: Path) -> dict[int, float]:
    """Step -> loss of the held-out clips."""
    events = EventAccumulator(str(run))
    events.Reload()
    return {event.step: event.value for event in events.Scalars("val/loss")}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("steps", nargs="*", help=f"of {', '.join(STEPS)}; all without")
    parser.add_argument("--recipe", choices=RECIPES, default="cpu")
    parser.add_argument("--arms", choices=ARMS, nargs="+", default=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; on GPUs 1")
    parser.add_argument("--precision", help="of training, such as bf16-mixed where the processor has it")
    chosen = parser.parse_args()
    recipe = RECIPES[chosen.recipe]
    steps = chosen.steps or STEPS
    if unknown := sorted(set(steps) - set(STEPS)):
        parser.error(f"no step {', '.join(unknown)}; there are {', '.join(STEPS)}")
    if "scenes" in steps:
        make_scenes(recipe)
    if "train" in steps:
        train(recipe, chosen.arms, chosen.seeds, chosen.jobs, chosen.precision)
    if "score" in steps:
        score(recipe, chosen.arms, chosen.seeds, chosen.jobs)
    if "table" in steps:
        print("\n".join(table(recipe, chosen.arms, chosen.seeds)))


if __name__ == "__main__":
    main()
