"""What an evaluation does, in one typed place whose hash goes into every result."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

from reconx_pl.errors import ConfigurationError
from reconx_pl.files.identity import hash_of, plain_settings
from reconx_pl.geometry.estimators.base import PointMapEstimator
from reconx_pl.metrics.image import METRICS
from reconx_pl.reconstruction.scene_builder import Alignment, FrameConfidence, FramePoses, SceneConfig
from reconx_pl.splatting.fit import FitConfig
from reconx_pl.splatting.points import PointsConfig

POSE_POLICIES = ("dataset", "interpolated", "aligned")
CONFIDENCES = ("auto", "reprojection", "render", "uniform", "alignment")
MASKS = ("none", "targets", "white")


@dataclass(frozen=True)
class EvaluationConfig:
    """Settings of an evaluation. The paper leaves most of them undisclosed; each is recorded with the scores.

    Args:
        fit: the 3D Gaussian fit, the same for the method, the baseline of the input views and the ceiling.
        points: which points the fit starts from: of the depth maps of the input views, or else of the scene's cloud.
            That baseline and the ceiling start from the same.
        pose_policy: cameras of the generated frames: "dataset" takes the poses of the clip's frames, "interpolated"
            moves between the cameras of the input views, "aligned" has an estimator align all frames globally with the
            cameras of the input views held fixed (ReconX, IV-E: the paper does not say; ours). The latter two never
            look at a target's pose before scoring. The input views keep their own cameras in all of them.
        confidence: of generated pixels: "alignment" is what the global alignment gives every pixel (the paper's C_i;
            needs pose_policy "aligned"), "reprojection" their agreement with the scene's cloud, "render" with the depth
            of the input views as surfaces, "uniform" trusts every pixel alike (the ablation), "auto" is "alignment"
            where frames are aligned, else "reprojection".
        alignment: of which frames together, with pose_policy "aligned"; see ``SceneConfig``.
        clip_frames: T, frames generated from one context view of a protocol entry to the next, both included; the
            paper has 32, and a model generates best what it was trained on. Packed clips have a number of their own.
        diffusion: False generates nothing and fits to the input views alone: the ablation of the whole video model.
        targets: frames of the clip to score; None takes the intermediate ones by ``target_stride``, () scores held-out
            views only.
        target_stride: n makes every n-th intermediate frame a target, starting at frame n.
        metrics: of "psnr", "ssim", "lpips".
        masks: how targets with a mask are scored: "none" ignores masks, "targets" scores the pixels within the mask
            alone, "white" is RegNeRF's way; see ``metrics.MetricSuite``. Targets without a mask are scored whole.
        nearest_input: score the baseline that copies the nearest input view.
        two_views: score the baseline that fits Gaussians to the input views alone, however many a protocol gives.
        filled_render: score the floor that knows no network: the depth of the input views rendered into the cameras of
            the frames, or of the targets of a protocol entry, with the holes filled. Views without depth have no such
            row, nor have evaluations in which nothing is generated.
        filled_render_splats: fit to these frames as to generated ones, and score the fit.
        coverage: score covered and uncovered pixels of the targets apart, too: those that the input views have seen,
            and the others (``coverage.Coverage``).
        depth_warp: of a protocol entry, score the baseline that renders the context views by their depth at the
            targets, or draws the cloud where there is no depth. ``filled_render`` is the same where there is depth, and
            stands in its place.
        ceiling: of a clip, fit the true even frames (and the last) with confidence 1 and score the odd ones: what this
            splatting could reach with perfect frames.
        refine_test_poses: steps by which the camera of every target is moved to where the finished scene, held fixed,
            explains the target best. It looks at the targets, so that its scores stand in a row of their own; 0 = none.
        seed: together with a scene's key it seeds everything random about that scene.
        media: write contact sheet, videos and scene.ply beside the scores.
        sheet_only: of these write the contact sheet alone.
        sheet_columns: frames on a contact sheet at most.
        error_gain: factor of the error row of a contact sheet.
    """

    fit: FitConfig = field(default_factory=FitConfig)
    points: PointsConfig = field(default_factory=PointsConfig)
    pose_policy: str = "dataset"
    confidence: str = "auto"
    alignment: Alignment = "clips"
    clip_frames: int = 32
    diffusion: bool = True
    targets: tuple[int, ...] | None = None
    target_stride: int = 1
    metrics: tuple[str, ...] = METRICS
    masks: str = "none"
    nearest_input: bool = True
    two_views: bool = True
    filled_render: bool = True
    filled_render_splats: bool = True
    coverage: bool = True
    depth_warp: bool = True
    ceiling: bool = False
    refine_test_poses: int = 0
    seed: int = 0
    media: bool = True
    sheet_only: bool = False
    sheet_columns: int = 8
    error_gain: float = 4.0

    def __post_init__(self) -> None:
        for name, choices in (("pose_policy", POSE_POLICIES), ("confidence", CONFIDENCES), ("masks", MASKS)):
            if getattr(self, name) not in choices:
                raise ConfigurationError(f"{name} is {getattr(self, name)!r}; choose from {', '.join(choices)}")
        if self.points.views != "ends" and self.pose_policy != "aligned":
            raise ConfigurationError(
                "points.views 'all' needs point maps of the generated frames, which pose_policy 'aligned' alone makes; "
                "take 'ends'"
            )
        if self.confidence == "alignment" and self.pose_policy != "aligned":
            raise ConfigurationError(
                "confidence 'alignment' is what a global alignment gives; it needs pose_policy 'aligned', or take "
                "'reprojection'"
            )
        if unknown := sorted(set(self.metrics) - set(METRICS)):
            raise ConfigurationError(f"unknown metrics {unknown}; choose from {', '.join(METRICS)}")
        if not self.metrics:
            raise ConfigurationError("an evaluation without metrics scores nothing; name at least one")
        if self.target_stride < 1:
            raise ConfigurationError(f"target_stride must be at least 1, got {self.target_stride}")
        if self.targets is not None and self.target_stride != 1:
            raise ConfigurationError("give targets or target_stride, not both")
        if self.clip_frames < 2:
            raise ConfigurationError(f"clip_frames counts both context views and is 2 or more, got {self.clip_frames}")
        if self.refine_test_poses < 0:
            raise ConfigurationError(f"refine_test_poses is a number of steps, 0 or more, got {self.refine_test_poses}")
        if self.sheet_columns < 3 or not self.error_gain > 0:
            raise ConfigurationError("a contact sheet needs at least 3 columns and a positive error_gain")

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return plain_settings(self)

    @property
    def hash(self) -> str:
        """See ``hash_of``."""
        return hash_of(self)

    @property
    def scene(self) -> SceneConfig:
        """The part that says how frames become a scene."""
        poses, confidence = cast(FramePoses, self.pose_policy), cast(FrameConfidence, self.confidence)
        return SceneConfig(self.fit, self.points, poses, confidence, self.alignment, self.seed)

    def check(self, estimator: PointMapEstimator | None) -> None:
        """Refuse early what the estimator cannot do; see ``SceneConfig.aligns``.

        Raises:
            ConfigurationError: the pose policy "aligned" and no estimator that can do it.
        """
        if self.diffusion:
            self.scene.aligns(estimator)

    def check_for_entries(self) -> None:
        """Refuse what only a clip with true frames between its inputs can do.

        Raises:
            ConfigurationError: such a setting; names it.
        """
        if self.pose_policy == "dataset":
            raise ConfigurationError(
                "pose_policy 'dataset' takes the poses of a clip's true frames, and the frames generated for a "
                "protocol entry have none: take 'interpolated' or 'aligned'"
            )
        if self.ceiling:
            raise ConfigurationError("ceiling is fitted to the true frames of a clip; a protocol entry has none")
        if self.targets is not None or self.target_stride != 1:
            raise ConfigurationError("targets and target_stride choose frames of a clip; a protocol names its targets")

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
