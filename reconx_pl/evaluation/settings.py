"""What an evaluation does, in one typed place whose hash goes into every result."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from reconx_pl.errors import ConfigurationError
from reconx_pl.evaluation.metrics import METRICS
from reconx_pl.splatting.fit import FitConfig
from reconx_pl.splatting.points import PointsConfig

POSE_POLICIES = ("dataset", "interpolated")
CONFIDENCES = ("reprojection", "uniform")


def plain_settings(config: Any) -> dict[str, Any]:
    """A dataclass of settings as plain values, ready for JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def hash_of(config: Any) -> str:
    """SHA-256 of settings as JSON with sorted keys: equal settings, equal hash, on every machine."""
    text = json.dumps(plain_settings(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class EvaluationConfig:
    """Settings of an evaluation. The paper leaves most of them undisclosed; each is recorded with the scores.

    Args:
        fit: the 3D Gaussian fit, the same for the method, the two-view baseline and the ceiling.
        points: which points the fit starts from: of the depth maps of the two input views, or else of the clip's cloud.
            The two-view baseline and the ceiling start from the same.
        pose_policy: cameras of the painted frames: "dataset" takes the poses of the clip's frames, "interpolated" moves
            between the cameras of the two input views and never looks at a target's pose before scoring. (The paper
            does not say; the input views keep their own cameras either way.)
        confidence: "reprojection" weighs painted frames by their agreement with the clip's cloud,
            "uniform" trusts every pixel alike (the ablation).
        targets: frames of the clip to score; None takes the intermediate ones by ``target_stride``, () scores held-out
            views only.
        target_stride: every how manieth intermediate frame is a target, starting at frame ``target_stride``.
        metrics: of "psnr", "ssim", "lpips".
        nearest_input: score the baseline that copies the nearest input view.
        two_views: score the baseline that fits Gaussians to the two input views alone.
        ceiling: fit the true even frames (and the last) with confidence 1 and score the odd ones: what this splatting
            could reach with perfect painting.
        seed: together with a scene's key it seeds everything random about that scene.
        media: write contact sheet, videos and scene.ply beside the scores.
        sheet_columns: frames on a contact sheet at most.
        error_gain: factor of the error row of a contact sheet.
    """

    fit: FitConfig = field(default_factory=FitConfig)
    points: PointsConfig = field(default_factory=PointsConfig)
    pose_policy: str = "dataset"
    confidence: str = "reprojection"
    targets: tuple[int, ...] | None = None
    target_stride: int = 1
    metrics: tuple[str, ...] = METRICS
    nearest_input: bool = True
    two_views: bool = True
    ceiling: bool = False
    seed: int = 0
    media: bool = True
    sheet_columns: int = 8
    error_gain: float = 4.0

    def __post_init__(self) -> None:
        if self.points.views != "ends":
            raise ConfigurationError(
                "points.views 'all' needs point maps of the painted frames, and none are made here; take 'ends'"
            )
        if self.pose_policy not in POSE_POLICIES:
            raise ConfigurationError(f"pose_policy is {self.pose_policy!r}; choose from {', '.join(POSE_POLICIES)}")
        if self.confidence not in CONFIDENCES:
            raise ConfigurationError(f"confidence is {self.confidence!r}; choose from {', '.join(CONFIDENCES)}")
        if unknown := sorted(set(self.metrics) - set(METRICS)):
            raise ConfigurationError(f"unknown metrics {unknown}; choose from {', '.join(METRICS)}")
        if not self.metrics:
            raise ConfigurationError("an evaluation without metrics scores nothing; name at least one")
        if self.target_stride < 1:
            raise ConfigurationError(f"target_stride must be at least 1, got {self.target_stride}")
        if self.targets is not None and self.target_stride != 1:
            raise ConfigurationError("give targets or target_stride, not both")
        if self.sheet_columns < 3 or not self.error_gain > 0:
            raise ConfigurationError("a contact sheet needs at least 3 columns and a positive error_gain")

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return plain_settings(self)

    @property
    def hash(self) -> str:
        """See ``hash_of``."""
        return hash_of(self)

    def target_frames(self, frames: int) -> list[int]:
        """Indices of the frames to score in a clip of ``frames`` frames.

        Raises:
            ConfigurationError: a target that is not an intermediate frame (the ends are inputs).
        """
        if self.targets is None:
            return list(range(self.target_stride, frames - 1, self.target_stride))
        wrong = [index for index in self.targets if not 0 < index < frames - 1]
        if wrong:
            raise ConfigurationError(
                f"targets {wrong} are not between the input views 0 and {frames - 1} of a clip of {frames} frames"
            )
        return list(self.targets)
