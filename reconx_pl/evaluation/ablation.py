"""The rows of the paper's table V: an evaluation without one part or another, and one table of them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from reconx_pl.diffusion.conditioning.render_config import GuidanceName
from reconx_pl.diffusion.pipeline import SamplingConfig
from reconx_pl.evaluation.records import SUMMARY
from reconx_pl.evaluation.settings import EvaluationConfig
from reconx_pl.files.atomic import atomic_write
from reconx_pl.files.json_files import read_json

FOLDER, TABLE = "ablation", "ablation.md"
PARTS = {  # column of the table -> the flag that leaves it out
    "video diffusion": "no_diffusion",
    "structure": "no_structure",
    "renders": "no_render",
    "DUSt3R init": "random_init",
    "confidence": "no_confidence",
    "LPIPS loss": "no_lpips",
}
# ReconX, table V, on RealEstate10K: what was left out -> PSNR, SSIM, LPIPS
PAPER = {
    ("no_diffusion", "no_structure", "no_confidence", "no_lpips"): "17.34 / .527 / .259",
    ("no_structure", "no_confidence", "no_lpips"): "19.70 / .789 / .229",
    ("no_structure",): "25.13 / .901 / .131",
    ("random_init",): "27.11 / .908 / .113",
    ("no_confidence",): "27.83 / .897 / .097",
    ("no_lpips",): "27.47 / .906 / .111",
    (): "28.31 / .912 / .088",
}


@dataclass(frozen=True)
class Ablation:
    """What an evaluation goes without (paper, table V).

    Args:
        no_structure: generate without the structure condition. Of a model that was trained with it this takes a
            condition away; the paper's claim is of a model trained without at equal budget, which is another checkpoint
            (stage ``spatial``).
        no_render: generate without renders, of a model that is guided by them: a condition taken away, likewise.
        no_confidence: every pixel of every generated frame counts alike, C_i = 1, and agreement with the scene is not
            judged either.
        no_lpips: the fit's loss without LPIPS.
        no_diffusion: nothing is generated; the scene is fitted to the input views alone.
        random_init: Gaussians start at random places, as many as otherwise.
    """

    no_structure: bool = False
    no_render: bool = False
    no_confidence: bool = False
    no_lpips: bool = False
    no_diffusion: bool = False
    random_init: bool = False

    @property
    def left_out(self) -> tuple[str, ...]:
        """Flags that are set, in the order of the table's columns."""
        return tuple(flag for flag in PARTS.values() if getattr(self, flag))

    @property
    def name(self) -> str:
        """Name of the row, and of its folder: "full", or the flags."""
        return "+".join(flag.replace("_", "-") for flag in self.left_out) or "full"

    def evaluation(self, config: EvaluationConfig) -> EvaluationConfig:
        """The settings without those parts."""
        fit, points = config.fit, config.points
        if self.no_confidence:
            config, fit = replace(config, confidence="uniform"), replace(fit, robust_weights=None)
        if self.no_lpips:
            fit = replace(fit, loss=replace(fit.loss, lpips=0.0))
        if self.random_init:
            points = replace(points, random=True)
        return replace(config, fit=fit, points=points, diffusion=config.diffusion and not self.no_diffusion)

    def sampling(self, config: SamplingConfig) -> SamplingConfig:
        """The sampling settings without those parts."""
        return replace(
            config,
            structure=config.structure and not self.no_structure,
            render=config.render and not self.no_render,
        )

    def guided_by(self, guidance: GuidanceName | None) -> Ablation:
        """The same with no other guidance than this; a model is not guided by what it was not trained with.

        Args:
            guidance: None leaves the model's.
        """
        if guidance is None:
            return self
        tokens, renders = guidance in ("structure", "both"), guidance in ("render", "both")
        return replace(self, no_structure=self.no_structure or not tokens, no_render=self.no_render or not renders)

    def out(self, out: Path) -> Path:
        """Where the row's results go: ``out`` itself for the full method, else a folder in it."""
        return out if not self.left_out else out / FOLDER / self.name

    @classmethod
    def named(cls, name: str) -> Ablation | None:
        """The reverse of ``name``; None where it is none."""
        flags = [] if name == "full" else name.replace("-", "_").split("+")
        input_places = {item.name for item in fields(cls)}
        return cls(**dict.fromkeys(flags, True)) if set(flags) <= input_places else None


def ablation_table(out: Path) -> str:
    """Markdown: one row for the full method and each ablation whose results are in ``out``, most left out first."""
    found = [(Ablation(), read_json(out / SUMMARY))]
    for folder in sorted((out / FOLDER).glob("*")):
        ablation = Ablation.named(folder.name)
        if ablation is not None:
            found.append((ablation, read_json(folder / SUMMARY)))
    rows = [(ablation, results) for ablation, results in found if results is not None]
    rows.sort(
        key=lambda row: (-len(row[0].left_out), [*PARTS.values()].index(row[0].left_out[0]) if row[0].left_out else 9)
    )
    metrics = _metrics([results for _, results in rows])
    lines = [
        "# Ablation",
        "",
        "Mean over scenes. The last column is the paper's table V (PSNR / SSIM / LPIPS on RealEstate10K), which is "
        "another protocol unless this one is re10k-easy.",
        "",
        f"| {' | '.join([*PARTS, *metrics, 'scenes', 'paper'])} |",
        f"|{'---|' * len(PARTS)}{'---:|' * (len(metrics) + 1)}---|",
    ]
    for ablation, results in rows:
        marks = ["-" if flag in ablation.left_out else "yes" for flag in PARTS.values()]
        if "no_diffusion" in ablation.left_out:
            for part in ("structure", "renders"):
                marks[list(PARTS).index(part)] = "-"
        mean = results["mean"].get("reconx", {})
        scores = [f"{mean[metric]:.3f}" if metric in mean else "n/a" for metric in metrics]
        count = f"{results['finished']} of {results['expected']}"
        lines.append(f"| {' | '.join([*marks, *scores, count, PAPER.get(_as_paper(ablation), '')])} |")
    incomplete = [ablation.name for ablation, results in rows if not results["complete"]]
    if incomplete:
        lines += ["", f"**Not complete:** {', '.join(incomplete)}; their means are of the scenes that were scored."]
    return "\n".join(lines) + "\n"


def _as_paper(ablation: Ablation) -> tuple[str, ...]:
    """Without diffusion there is no structure either, as the paper's first row says."""
    return tuple(
        flag
        for flag in PARTS.values()
        if flag in ablation.left_out or (flag == "no_structure" and ablation.no_diffusion)
    )


def _metrics(results: Sequence[dict[str, Any]]) -> list[str]:
    names: dict[str, None] = {}
    for one in results:
        names |= dict.fromkeys(one["metrics"])
    return list(names)


def write_ablation_table(out: Path) -> Path | None:
    """Write ``ablation_table`` to ``out/ablation.md``, once an ablation is there; returns the path."""
    if not (out / FOLDER).is_dir():
        return None
    path = out / TABLE
    with atomic_write(path) as unfinished:
        unfinished.write_text(ablation_table(out), encoding="utf-8")
    return path
