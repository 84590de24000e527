"""procedural-v1: does the structure condition help, at equal budget, with exact geometry? (ReconX, IV-A, proposition 1)

``python -m benchmarks.procedural_v1`` makes the rooms, trains, scores and prints the table; every step goes on where it
was stopped. One base is trained, as the paper starts from one pretrained model. From it each arm trains the paper's
stage 2 with each seed: *structure* with the condition, *spatial* the same layers for the same steps without it. Both
generate and fit the same held-out scenes: *easy* views (gap 1) and *hard* ones (gap 3).
"""

from __future__ import annotations

import argparse
import json
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

from reconx_pl.data.procedural import write_procedural
from reconx_pl.files.configs import read_config
from reconx_pl.files.json_files import read_json

ARMS = ("structure", "spatial")
SETS = {"easy": (1.0, 12_000_000), "hard": (3.0, 13_000_000)}  # gap, first seed
TRAIN_SEED, VAL_SEED, VAL_CLIPS, MAX_GAP = 10_000_000, 11_000_000, 32, 3.0
STEPS = ["rooms", "train", "score", "table"]
ROWS = {  # of the table: title -> method of a record; the first two know no model
    "nearest input view": "nearest_input",
    "3DGS of the two views": "two_views",
    "generated": "generated",
    "splats": "reconx",
}


@dataclass(frozen=True)
class Recipe:
    """Sizes of the benchmark: the base's config has those of the model."""

    config: Path
    size: int  # rows and columns of a frame, pixels
    frames: int
    points: int
    train_clips: int
    test_scenes: int  # of each set
    steps: int  # of each arm
    lr: float
    structure_multiplier: float
    fit_steps: int
    lpips: float  # weight in the fit's loss

    @cached_property
    def base(self) -> dict[str, Any]:
        return read_config(self.config)

    @property
    def runs(self) -> Path:
        return Path(self.base["trainer"]["logger"]["init_args"]["save_dir"])

    @property
    def shards(self) -> Path:
        return Path(self.base["data"]["train"]).parent

    def arm(self, arm: str, seed: int) -> dict[str, Any]:
        """The config of one run: the base's, but for stage, start, budget and folders."""
        config = json.loads(json.dumps(self.base).replace("base-0", f"{arm}-{seed}"))
        config["seed_everything"] = seed
        config["model"]["stage"] = arm
        config["model"]["init_from"] = str(self.runs / "base-0" / "weights.safetensors")
        config["model"]["optimizer"] |= {"lr": self.lr, "warmup_steps": 20}
        if arm == "structure":
            config["model"]["optimizer"]["structure_multiplier"] = self.structure_multiplier
        config["trainer"] |= {"max_steps": self.steps, "val_check_interval": self.steps // 3}
        return config


CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "procedural_v1"
RECIPES = {
    "cpu": Recipe(CONFIGS / "base.yaml", 64, 8, 2048, 4096, 12, 330, 1e-3, 3.0, 200, 0.0),
    "gpu": Recipe(CONFIGS / "base_gpu.yaml", 256, 16, 8192, 16384, 64, 10_000, 1e-4, 3.0, 1000, 0.5),
}


def make_rooms(recipe: Recipe) -> None:
    """Shards of training, validation and test scenes; their seeds never overlap."""

    def write(name: str, count: int, first: int, gap: float, max_gap: float) -> None:
        done = write_procedural(
            recipe.shards / name,
            count,
            first,
            frames=recipe.frames,
            size=(recipe.size, recipe.size),
            points=recipe.points,
            gap=gap,
            max_gap=max_gap,
            clips_per_shard=128,
        )
        print(f"{recipe.shards / name}: {done} scenes made, {count - done} were there", flush=True)

    write(Path(recipe.base["data"]["train"]).name, recipe.train_clips, TRAIN_SEED, 1.0, MAX_GAP)
    write(Path(recipe.base["data"]["val"]).name, VAL_CLIPS, VAL_SEED, 1.0, MAX_GAP)
    for name, (gap, first) in SETS.items():
        write(f"{recipe.runs.name}-{name}", recipe.test_scenes, first, gap, 0.0)


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


def train(recipe: Recipe, seeds: Sequence[int], jobs: int) -> None:
    """The base, then every arm with every seed."""
    fit = [sys.executable, "train.py", "fit", "-c"]
    runs = recipe.runs
    if not (runs / "base-0" / "weights.safetensors").exists():
        run_all([[*fit, str(recipe.config)]], 1, runs / "logs")
    commands = []
    for seed in seeds:
        for arm in ARMS:
            if not (runs / f"{arm}-{seed}" / "weights.safetensors").exists():
                config = runs / "configs" / f"{arm}-{seed}.yaml"
                config.parent.mkdir(parents=True, exist_ok=True)
                config.write_text(yaml.safe_dump(recipe.arm(arm, seed), sort_keys=False), encoding="utf-8")
                commands.append([*fit, str(config)])
    run_all(commands, jobs, runs / "logs")


def score(recipe: Recipe, seeds: Sequence[int], jobs: int) -> None:
    """Generate, fit and score the held-out scenes with every run; what needs no model is done with the first alone."""
    commands = []
    for seed in seeds:
        for arm in ARMS:
            for name in SETS:
                first = (seed, arm) == (seeds[0], ARMS[0])
                shards = recipe.shards / f"{recipe.runs.name}-{name}"
                commands.append(
                    [
                        *(sys.executable, "evaluate.py", "--model", str(recipe.runs / f"{arm}-{seed}")),
                        *("--shards", str(shards), "--evaluation.fit.steps", str(recipe.fit_steps)),
                        *("--evaluation.fit.loss.lpips", str(recipe.lpips)),
                        *("--evaluation.two_views", str(first), "--evaluation.nearest_input", str(first)),
                        *("--evaluation.media", str(seed == seeds[0])),
                        *("--out", str(results_folder(recipe, arm, seed, name))),
                    ]
                )
    run_all(commands, jobs, recipe.runs / "logs")


def results_folder(recipe: Recipe, arm: str, seed: int, name: str) -> Path:
    return recipe.runs / "results" / f"{arm}-{seed}-{name}"


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean and standard deviation over seeds."""
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


def table(recipe: Recipe, seeds: Sequence[int]) -> Iterator[str]:
    """Lines of Markdown: the scores of both sets, the paired differences, the curves of the validation loss."""
    for name in SETS:
        results = {
            (arm, seed): read_json(results_folder(recipe, arm, seed, name) / "results.json") or {"complete": False}
            for arm in ARMS
            for seed in seeds
        }
        if not all(one["complete"] for one in results.values()):
            yield f"{name}: not complete; run `score` again"
            continue
        first = results[ARMS[0], seeds[0]]
        metrics = [metric for metric in first["metrics"] if metric not in first["absent"]]
        yield f"\n**{name}**, {first['finished']} scenes, {len(seeds)} seeds: mean ± standard deviation over seeds\n"
        yield f"| | {' | '.join(metrics)} |"
        yield f"|---|{'---:|' * len(metrics)}"
        for title, method in ROWS.items():
            if method in ("nearest_input", "two_views"):
                yield f"| {title} | {' | '.join(spread([first['mean'][method][metric]]) for metric in metrics)} |"
                continue
            for arm in ARMS:
                cells = [spread([results[arm, seed]["mean"][method][metric] for seed in seeds]) for metric in metrics]
                label = "with structure" if arm == "structure" else "without"
                yield f"| {title}, {label} | {' | '.join(cells)} |"
            gains = [paired(results, seeds, method, metric) for metric in metrics]
            yield f"| {title}, with - without | {' | '.join(gains)} |"
    yield "\n**Validation loss**: mean ± standard deviation over seeds\n"
    curves = {arm: [validation_loss(recipe.runs / f"{arm}-{seed}") for seed in seeds] for arm in ARMS}
    steps = sorted(set.intersection(*(set(curve) for arm in ARMS for curve in curves[arm])))
    yield f"| step | {' | '.join(str(step) for step in steps)} |"
    yield f"|---|{'---:|' * len(steps)}"
    for arm in ARMS:
        yield f"| {arm} | {' | '.join(spread([curve[step] for curve in curves[arm]], 5) for step in steps)} |"
    pairs = [*zip(*(curves[arm] for arm in ARMS), strict=True)]
    gains = [spread([one[step] - other[step] for one, other in pairs], 5) for step in steps]
    yield f"| {ARMS[0]} - {ARMS[1]} | {' | '.join(gains)} |"


def paired(results: dict[tuple[str, int], Any], seeds: Sequence[int], method: str, metric: str) -> str:
    """Mean difference over scenes, its spread over seeds, and how often it is positive."""
    differences = []
    for seed in seeds:
        arms = [
            {one["key"]: one["scores"][method]["mean"][metric] for one in results[arm, seed]["scenes"]} for arm in ARMS
        ]
        differences.append([arms[0][key] - arms[1][key] for key in arms[0]])
    every = [value for one in differences for value in one]
    positive = sum(value > 0 for value in every)
    return f"{spread([statistics.mean(one) for one in differences])} (+ in {positive} of {len(every)})"


def validation_loss(run: Path) -> dict[int, float]:
    """Step -> loss of the held-out clips."""
    events = EventAccumulator(str(run))
    events.Reload()
    return {event.step: event.value for event in events.Scalars("val/loss")}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("steps", nargs="*", help="of rooms, train, score, table; all without")
    parser.add_argument("--recipe", choices=RECIPES, default="cpu")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; on GPUs 1")
    chosen = parser.parse_args()
    recipe = RECIPES[chosen.recipe]
    steps = chosen.steps or STEPS
    if unknown := sorted(set(steps) - set(STEPS)):
        parser.error(f"no step {', '.join(unknown)}; there are {', '.join(STEPS)}")
    if "rooms" in steps:
        make_rooms(recipe)
    if "train" in steps:
        train(recipe, chosen.seeds, chosen.jobs)
    if "score" in steps:
        score(recipe, chosen.seeds, chosen.jobs)
    if "table" in steps:
        print("\n".join(table(recipe, chosen.seeds)))


if __name__ == "__main__":
    main()
