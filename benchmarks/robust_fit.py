"""What confidence and pose refinement bring when a third of the training frames is wrong, as generated frames are.

``python -m benchmarks.robust_fit SCENE [SCENE ...]``: folders of posed photographs in any format that ``reconx pack``
reads. Every 8th view is held out. Of the others every third is corrupted (``benchmarks.corruption``) and stands for a
generated frame; the rest are the known views, and points are triangulated from these alone. What a user has is used and
nothing more: the confidence of every frame is its agreement with the cloud (``reprojection_confidence``).

Scores are those of the held-out views at their true poses, mean over the scenes.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torchvision.utils import save_image

from benchmarks.corruption import Corrupted, corrupt, corrupted_views, told_apart
from benchmarks.posed_scenes import PosedScene, points_from, posed_scene
from reconx_pl.geometry.estimators.base import reprojection_confidence
from reconx_pl.metrics.image import MetricSuite
from reconx_pl.splatting.confidence import ConfidenceMode
from reconx_pl.splatting.fit import FitConfig, FitResult, fit
from reconx_pl.splatting.losses import LossWeights, ssim_map
from reconx_pl.splatting.pose_refinement import PoseRefinement, pose_changes
from reconx_pl.splatting.renderers.choose import default_renderer
from reconx_pl.splatting.robust_weights import RobustWeights
from reconx_pl.types import Cameras, PointCloud


@dataclass(frozen=True)
class Variant:
    """What a fit is given: which frames and confidence, whether poses may move, whether agreement is judged."""

    frames: Literal["clean", "corrupted", "known"] = "corrupted"
    confidence: Literal["uniform", "reprojection", "mask"] = "uniform"
    mode: ConfidenceMode = "mean-log"
    poses: bool = False
    robust_weights: bool = False


VARIANTS = {
    "true frames": Variant("clean"),
    "known views only": Variant("known"),
    "corrupted": Variant(),
    "confidence, mean-log": Variant(confidence="reprojection"),
    "confidence, log": Variant(confidence="reprojection", mode="log"),
    "confidence, linear": Variant(confidence="reprojection", mode="linear"),
    "poses": Variant(poses=True),
    "confidence, poses": Variant(confidence="reprojection", poses=True),
    "robust weights": Variant(robust_weights=True),
    "agreement, poses": Variant(poses=True, robust_weights=True),
    "mask": Variant(confidence="mask"),
    "mask, poses": Variant(confidence="mask", poses=True),
}


class Case:
    """One scene with its corruption, ready for fits.

    Args:
        folder: of the scene.
        short_side: pixels of the frames.
        seed: of the corruption.
        cache: folder of the triangulated points.
    """

    def __init__(self, folder: Path, short_side: int, seed: int, cache: Path) -> None:
        self.scene: PosedScene = posed_scene(folder, short_side)
        bad = corrupted_views(self.scene.training, seed)
        known = [view for view in self.scene.training if view not in bad]
        self.cloud: PointCloud = points_from(self.scene.raw, known, cache)
        self.frames = self.scene.frames[self.scene.training]
        self.cameras = self.scene.cameras[self.scene.training]
        self.bad = [self.scene.training.index(view) for view in bad]
        self.known = [self.scene.training.index(view) for view in known]
        self.corrupted: Corrupted = corrupt(self.frames, self.cameras, self.cloud, self.bad, seed)

    def fit(self, variant: Variant, config: FitConfig) -> FitResult:
        """Fit one variant."""
        config = replace(
            config,
            confidence=variant.mode,
            poses=PoseRefinement() if variant.poses else None,
            robust_weights=RobustWeights() if variant.robust_weights else None,
        )
        if variant.frames == "clean":
            return fit(self.frames, self.cameras, None, self.cloud, config, input_views=self.known)
        frames, cameras = self.corrupted.frames, self.corrupted.cameras
        if variant.frames == "known":
            everywhere = range(len(self.known))
            return fit(frames[self.known], cameras[self.known], None, self.cloud, config, input_views=everywhere)
        return fit(frames, cameras, self._confidence(variant), self.cloud, config, input_views=self.known)

    def _confidence(self, variant: Variant) -> Tensor | None:
        match variant.confidence:
            case "uniform":
                return None
            case "mask":
                return torch.where(self.corrupted.wrong > 0, 0.0, 2.0)
            case _:
                return self.reprojection

    @cached_property
    def reprojection(self) -> Tensor:  # [V, H, W]
        """What a user has: the agreement of every frame with the cloud of the known views."""
        return reprojection_confidence(self.corrupted.frames, self.corrupted.cameras, self.cloud)

    def similarity(self, result: FitResult) -> Tensor:  # [V, H, W]
        """SSIM of the corrupted frames with the scene that was fitted to them."""
        with torch.no_grad():
            pictures = default_renderer("cpu").render(result.gaussians, result.cameras).color
            return ssim_map(pictures.clamp(0, 1), self.corrupted.frames)

    def told_apart(self, score: Tensor) -> float:
        """``corruption.told_apart`` in the corrupted frames."""
        return told_apart(score[self.bad], self.corrupted.wrong[self.bad])

    def render(self, result: FitResult) -> Tensor:  # [M, 3, H, W]
        """The held-out views."""
        with torch.no_grad():
            return default_renderer("cpu").render(result.gaussians, self.scene.cameras[self.scene.held_out]).color

    @property
    def truth(self) -> Tensor:  # [M, 3, H, W]
        return self.scene.frames[self.scene.held_out]

    def pose_error(self, cameras: Cameras) -> tuple[float, float]:
        """Mean error of the corrupted frames' poses: degrees, world units."""
        angles, distances = pose_changes(self.cameras[self.bad], cameras[self.bad])
        return float(angles.mean()), float(distances.mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", nargs="+", type=Path)
    parser.add_argument("--size", type=int, default=128, help="short side of the frames, pixels")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--lpips", type=int, default=0, help="AlexNet's LPIPS in every k-th step; 0 leaves it out")
    parser.add_argument("--seed", type=int, default=0, help="of the corruption and the fits")
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--cache", type=Path, help="folder for triangulated points; default: gone with the run")
    parser.add_argument("--pictures", type=Path, help="folder for frames, confidence and held-out views as PNG")
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = FitConfig(
        steps=options.steps,
        loss=LossWeights(lpips=0.5 if options.lpips else 0.0),
        lpips_net="alex",
        lpips_every=max(1, options.lpips),
        seed=options.seed,
    )
    suite = MetricSuite()
    scores: dict[str, dict[str, Tensor]] = {name: {} for name in options.only}
    with tempfile.TemporaryDirectory() as temporary:
        for folder in options.scenes:
            case = Case(folder, options.size, options.seed, options.cache or Path(temporary))
            print(
                f"{case.scene.name}: {len(case.known)} known and {len(case.bad)} corrupted views of "
                f"{case.cameras.height} x {case.cameras.width}, {len(case.truth)} held out, {len(case.cloud)} points; "
                f"wrong pixels told apart by confidence: {case.told_apart(case.reprojection):.2f}",
                flush=True,
            )
            for name in options.only:
                start = time.process_time()
                result = case.fit(VARIANTS[name], config)
                pictures = case.render(result)
                values = {metric: value.mean() for metric, value in suite(pictures, case.truth).items()}
                scores[name][case.scene.name] = torch.stack(list(values.values()))
                note = ""
                if VARIANTS[name].robust_weights:
                    note += f"  told apart: {case.told_apart(case.similarity(result)):.2f}"
                if VARIANTS[name].poses:
                    before, after = case.pose_error(case.corrupted.cameras), case.pose_error(result.cameras)
                    note += f"  poses off by {before[0]:.2f} -> {after[0]:.2f}°, {before[1]:.3g} -> {after[1]:.3g}"
                shown = "  ".join(f"{metric} {float(value):.4g}" for metric, value in values.items())
                print(f"  {name:22s} {shown}  {time.process_time() - start:.0f} s{note}", flush=True)
                if options.pictures:
                    save_pictures(options.pictures, case, name, pictures)
    table(scores, suite.names)


def table(scores: dict[str, dict[str, Tensor]], metrics: tuple[str, ...]) -> None:
    """Print the means over the scenes, and PSNR scene by scene."""
    scenes = list(next(iter(scores.values())))
    print(f"\n| | {' / '.join(metrics)}, mean | " + " | ".join(scenes) + " |\n|" + "---|" * (len(scenes) + 2))
    for name, by_scene in scores.items():
        mean = torch.stack(list(by_scene.values())).mean(dim=0)
        cells = [f"{float(mean[0]):.2f}" + "".join(f" / {float(value):.3f}" for value in mean[1:])]
        cells += [f"{float(by_scene[scene][0]):.2f}" for scene in scenes]
        print(f"| {name} | " + " | ".join(cells) + " |")


def save_pictures(folder: Path, case: Case, name: str, pictures: Tensor) -> None:
    """Held-out views beside their truth; once a scene, the corrupted frames with their true ones and confidence."""
    folder.mkdir(parents=True, exist_ok=True)
    first = folder / f"{case.scene.name}-frames.png"
    if not first.is_file():
        rows = [case.frames[case.bad], case.corrupted.frames[case.bad]]
        rows += [
            (case.reprojection[case.bad, None] / 10).expand_as(rows[0]),
            case.corrupted.wrong[case.bad, None].expand_as(rows[0]),
        ]
        save_image(torch.cat([row[:6] for row in rows]), first, nrow=min(6, len(case.bad)))
    plain = name.replace(",", "").replace(" ", "-")
    save_image(
        torch.cat([case.truth[:6], pictures[:6].clamp(0, 1)]),
        folder / f"{case.scene.name}-{plain}.png",
        nrow=min(6, len(case.truth)),
    )


if __name__ == "__main__":
    main()
