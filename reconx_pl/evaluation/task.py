"""What the evaluation of a scene works on, whether a packed clip brought it or an entry of a benchmark."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from reconx_pl.errors import BadSceneError, ConfigurationError
from reconx_pl.evaluation.entry_views import BenchmarkViews
from reconx_pl.evaluation.settings import EvaluationConfig
from reconx_pl.geometry.estimators.base import PointMapEstimator, has_dense_maps
from reconx_pl.geometry.point_maps import depth_from_point_map
from reconx_pl.reconstruction.alignment import holds_fixed_views
from reconx_pl.reconstruction.pair_clips import _cloud_of_depth, pair_clips, path_cameras
from reconx_pl.types import AlignmentQuality, Cameras, Clip, PointCloud

FROM_DEPTH = "depth of the two input views, as it came with the data"
FROM_POINTS = (
    "points of a reconstruction that was made from all photographs of the scene, targets included; "
    "those that project into an input view"
)
FROM_CONTEXT_DEPTH = "depth of the context views, as it came with the data"
FROM_CLOUD = "points that came with the entry"
CLOUD_POINTS = 16384  # of a cloud made of context depth (PAPER, section 2: ours)


@dataclass(frozen=True)
class SceneTask:
    """Input views, the clips to generate between them, and the true views that score the scene.

    Args:
        key, dataset, scene: names.
        clips: one for each pair of neighbouring input views, in the order of visiting; all of T frames.
        images: [C, 3, H, W] input views, C >= 2, float32 in [0, 1].
        cameras: C views.
        indices: C frame numbers in the source.
        frame_indices: frame numbers of all T frames of a clip; of an entry those of ``indices``.
        depth: [C, H, W] z-depth of the input views, world units, 0 = none; None where the cloud is all there is.
        confidence: [C, H, W] of the input views, as DUSt3R gives it; None where it is not known.
        measured: whether depth came with the data; an estimator's gives way to a global alignment of all frames.
        cloud: points of the scene, farthest-point order.
        views: [M, 3, H, W] true views: all frames of a clip, the targets of an entry.
        view_cameras: M views.
        targets: places in ``views`` that are scored.
        target_indices: what the record calls them.
        masks: [M, H, W] bool; None scores all pixels.
        views_in_clip: ``views`` are the frames of the one clip, so that the generation can be scored too.
        held_out: further true views.
        geometry: where depth or cloud come from.
        alignment: how well poses that an estimator found agree with those of the data set.
    """

    key: str
    dataset: str
    scene: str
    clips: tuple[Clip, ...]
    images: Tensor
    cameras: Cameras
    indices: tuple[int, ...]
    frame_indices: tuple[int, ...]
    cloud: PointCloud
    views: Tensor
    view_cameras: Cameras
    targets: list[int]
    target_indices: list[int]
    geometry: str
    depth: Tensor | None = None
    confidence: Tensor | None = None
    measured: bool = True
    masks: Tensor | None = None
    views_in_clip: bool = False
    held_out: HeldOutViews | None = None
    alignment: AlignmentQuality | None = None

    @property
    def input_places(self) -> list[int]:
        """Places of the input views among all frames, generated ones and these: every input view once."""
        step = self.clips[0].frames.shape[0] - 1
        return [view * step for view in range(len(self.cameras))]


def geometry_note(clip: Clip) -> str:
    """Where a clip's cloud comes from: an estimator, or packing, which makes it of depth if it can, else of points."""
    return clip.geometry or (FROM_DEPTH if clip.depth is not None else FROM_POINTS)


def clip_task(clip: Clip, config: EvaluationConfig, held_out: HeldOutViews | None = None) -> SceneTask:
    """A clip whose first and last frame are the input views and whose other frames are the truth.

    Raises:
        BadSceneError: no cloud, or nothing to score.
        ConfigurationError: ``config.targets`` are not frames between the two.
    """
    count = clip.frames.shape[0]
    targets = config.target_frames(count)
    if not targets and held_out is None:
        raise BadSceneError(f"clip {clip.key} has {count} frames and no target to score; give at least one")
    if clip.cloud is None or len(clip.cloud) == 0:
        raise BadSceneError(f"clip {clip.key} has no point cloud; pack it with its geometry (see reconx pack --help)")
    ends = [0, count - 1]
    return SceneTask(
        key=clip.key,
        dataset=clip.dataset,
        scene=clip.scene,
        clips=(clip,),
        images=clip.images[ends],
        cameras=clip.cameras[ends],
        indices=(clip.frame_indices[0], clip.frame_indices[-1]),
        frame_indices=clip.frame_indices,
        depth=clip.depth,
        confidence=clip.confidence,
        cloud=clip.cloud,
        views=clip.images,
        view_cameras=clip.cameras,
        targets=targets,
        target_indices=targets,
        views_in_clip=True,
        held_out=held_out,
        geometry=geometry_note(clip),
        alignment=clip.alignment,
    )


def views_task(views: BenchmarkViews, config: EvaluationConfig, estimator: PointMapEstimator | None) -> SceneTask:
    """An entry of a benchmark.

    Its geometry is the depth of the context views, where there is some, else the entry's cloud, else what ``estimator``
    finds in the context views alone with their true cameras.

    Raises:
        BadSceneError: no targets, none of the three, or the estimator fails; names the entry.
    """
    if len(views.target_indices) == 0:
        raise BadSceneError(f"{views.key} has no target view to score; see the index of its benchmark")
    geometry = _geometry(views, estimator)
    return SceneTask(
        key=views.key,
        dataset=views.dataset,
        scene=views.scene,
        clips=pair_clips(views, config.clip_frames, geometry.cloud, geometry.depth),
        images=views.context_images,
        cameras=views.context_cameras,
        indices=views.context_indices,
        frame_indices=views.context_indices,
        depth=geometry.depth,
        confidence=geometry.confidence,
        measured=geometry.measured,
        cloud=geometry.cloud,
        views=views.target_images,
        view_cameras=views.target_cameras,
        targets=list(range(len(views.target_indices))),
        target_indices=list(views.target_indices),
        masks=views.target_masks if config.masks != "none" else None,
        geometry=geometry.note,
    )


@dataclass(frozen=True)
class _Geometry:
    cloud: PointCloud
    note: str
    depth: Tensor | None = None
    confidence: Tensor | None = None
    measured: bool = True


def _geometry(views: BenchmarkViews, estimator: PointMapEstimator | None) -> _Geometry:
    images, cameras, depth = views.context_images, views.context_cameras, views.context_depth
    came = views.cloud if views.cloud is not None and len(views.cloud) > 0 else None
    if depth is not None and bool((depth > 0).any()):
        cloud = came or _cloud_of_depth(images, cameras, depth)
        return _Geometry(cloud, views.geometry or FROM_CONTEXT_DEPTH, depth.float(), views.context_confidence)
    if came is not None:
        return _Geometry(came, views.geometry or FROM_CLOUD)
    if estimator is None:
        raise BadSceneError(
            f"{views.key} has neither depth of its context views nor points; name an estimator that finds some"
        )
    try:
        found = estimator.estimate(images, cameras)
    except BadSceneError as error:
        raise BadSceneError(f"{views.key}: {error}") from error
    note = f"points found by {type(estimator).__name__} from the {len(images)} context views, with their true cameras"
    if not has_dense_maps(estimator):
        return _Geometry(found.cloud, note)
    depth = depth_from_point_map(found.point_map, cameras)
    return _Geometry(found.cloud, note, depth, found.point_map.confidence, measured=False)


def sequence_cameras(task: SceneTask) -> Cameras:
    """Cameras of all frames, see ``path_cameras``."""
    return path_cameras(task.cameras, task.clips[0].frames.shape[0])


@dataclass(frozen=True)
class HeldOutViews:
    """True views beside the clip (a benchmark's targets), never shown to view generator or fit."""

    images: Tensor  # [V, 3, H, W] float32 in [0, 1]
    cameras: Cameras  # V views

    def __post_init__(self) -> None:
        if self.images.shape[0] != len(self.cameras) or self.images.ndim != 4:
            raise BadSceneError(
                f"{tuple(self.images.shape)} held-out images do not go with {len(self.cameras)} held-out cameras"
            )


@dataclass(frozen=True)
class LazyScene:
    """A scene that is loaded when its turn comes; a scene that cannot be loaded is then a failed scene with a name.

    Args:
        key: of the clip that ``load`` returns; unique in an evaluation.
        load: gives the clip.
        held_out: gives further views to score, or None.
    """

    key: str
    load: Callable[[], Clip]
    held_out: Callable[[], HeldOutViews] | None = None


def check_estimator(config: EvaluationConfig, estimator: PointMapEstimator | None) -> None:
    """Refuse the pose policy "aligned" without an estimator that can do it, where there are generated frames to align.

    Raises:
        ConfigurationError: says which one can.
    """
    if config.pose_policy != "aligned" or not config.diffusion:
        return
    if estimator is None:
        raise ConfigurationError(
            "pose_policy 'aligned' needs an estimator that aligns all frames: name one (--estimator), such as DUSt3R "
            "(PretrainedDust3r), or take 'interpolated'"
        )
    if not holds_fixed_views(estimator):
        raise ConfigurationError(
            f"pose_policy 'aligned' holds the cameras of the input views, and {type(estimator).__name__} cannot hold "
            "some and find others; name DUSt3R (PretrainedDust3r), or take 'interpolated'"
        )
