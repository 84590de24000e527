"""What the evaluation of a scene works on, whether a packed clip brought it or an entry of a protocol."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from reconx_pl.errors import BadSceneError
from reconx_pl.evaluation.entry_views import EntryViews
from reconx_pl.evaluation.settings import EvaluationConfig
from reconx_pl.geometry.estimators.base import PointMapEstimator, has_dense_maps, name_of
from reconx_pl.geometry.point_maps import depth_from_point_map
from reconx_pl.reconstruction.input_views import InputViews
from reconx_pl.reconstruction.pair_clips import cloud_of_depth, pair_clips
from reconx_pl.types import AlignmentQuality, Cameras, Clip, PointCloud

FROM_DEPTH = "depth of the two input views, as it came with the data"
FROM_POINTS = (
    "points of a reconstruction that was made from all photographs of the scene, targets included; "
    "those that project into an input view"
)
FROM_CONTEXT_DEPTH = "depth of the context views, as it came with the data"
FROM_CLOUD = "points that came with the entry"


@dataclass(frozen=True)
class SceneTask:
    """Input views, the clips to generate between them, and the true views that score the scene.

    Args:
        inputs: the input views, and all that is known of them.
        clips: one for each pair of neighbouring input views, in the order of visiting; all of T frames. Empty where
            nothing is ever generated.
        frame_indices: frame numbers of all T frames of a clip; else those of the input views.
        views: [M, 3, H, W] true views: all frames of a clip, or the targets.
        view_cameras: M views.
        targets: places in ``views`` that are scored.
        target_indices: what the record calls them.
        masks: [M, H, W] bool; None scores all pixels.
        views_in_clip: ``views`` are the frames of the one clip, so that the generated ones can be scored too.
        held_out: further true views.
        alignment: how well poses that an estimator found agree with those of the data set.
    """

    inputs: InputViews
    clips: tuple[Clip, ...]
    frame_indices: tuple[int, ...]
    views: Tensor
    view_cameras: Cameras
    targets: list[int]
    target_indices: list[int]
    masks: Tensor | None = None
    views_in_clip: bool = False
    held_out: HeldOutViews | None = None
    alignment: AlignmentQuality | None = None

    @property
    def key(self) -> str:
        return self.inputs.key


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
    inputs = InputViews(
        key=clip.key,
        images=clip.images[ends],
        cameras=clip.cameras[ends],
        cloud=clip.cloud,
        depth=clip.depth,
        confidence=clip.confidence,
        measured=not clip.geometry,  # which an estimator has written
        indices=(clip.frame_indices[0], clip.frame_indices[-1]),
        dataset=clip.dataset,
        scene=clip.scene,
        fps=clip.fps,
        caption=clip.caption,
        geometry=geometry_note(clip),
    )
    return SceneTask(
        inputs=inputs,
        clips=(clip,),
        frame_indices=clip.frame_indices,
        views=clip.images,
        view_cameras=clip.cameras,
        targets=targets,
        target_indices=targets,
        views_in_clip=True,
        held_out=held_out,
        alignment=clip.alignment,
    )


def views_task(views: EntryViews, config: EvaluationConfig, estimator: PointMapEstimator | None) -> SceneTask:
    """An entry of a protocol.

    Its geometry is the depth of the context views, where there is some, else the entry's cloud, else what ``estimator``
    finds in the context views alone with their true cameras.

    Raises:
        BadSceneError: no targets, none of the three, or the estimator fails; names the entry.
    """
    if len(views.target_indices) == 0:
        raise BadSceneError(f"{views.key} has no target view to score; see the index of its protocol")
    inputs = _inputs(views, estimator)
    return SceneTask(
        inputs=inputs,
        clips=pair_clips(inputs, config.clip_frames),
        frame_indices=views.context_indices,
        views=views.target_images,
        view_cameras=views.target_cameras,
        targets=list(range(len(views.target_indices))),
        target_indices=list(views.target_indices),
        masks=views.target_masks if config.masks != "none" else None,
    )


def _inputs(views: EntryViews, estimator: PointMapEstimator | None) -> InputViews:
    """The context views of an entry, with their geometry."""
    geometry = _geometry(views, estimator)
    return InputViews(
        key=views.key,
        images=views.context_images,
        cameras=views.context_cameras,
        cloud=geometry.cloud,
        depth=geometry.depth,
        confidence=geometry.confidence,
        measured=geometry.measured,
        indices=views.context_indices,
        dataset=views.dataset,
        scene=views.scene,
        fps=views.fps,
        caption=views.caption,
        geometry=geometry.note,
    )


@dataclass(frozen=True)
class _Geometry:
    cloud: PointCloud
    note: str
    depth: Tensor | None = None
    confidence: Tensor | None = None
    measured: bool = True


def _geometry(views: EntryViews, estimator: PointMapEstimator | None) -> _Geometry:
    images, cameras, depth = views.context_images, views.context_cameras, views.context_depth
    came = views.cloud if views.cloud is not None and len(views.cloud) > 0 else None
    if depth is not None and bool((depth > 0).any()):
        cloud = came or cloud_of_depth(images, cameras, depth)
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
    note = f"points found by {name_of(estimator)} from the {len(images)} context views, with their true cameras"
    if not has_dense_maps(estimator):
        return _Geometry(found.cloud, note)
    depth = depth_from_point_map(found.point_map, cameras)
    return _Geometry(found.cloud, note, depth, found.point_map.confidence, measured=False)


@dataclass(frozen=True)
class HeldOutViews:
    """True views beside the clip (a protocol's targets), never shown to view generator or fit."""

    images: Tensor  # [V, 3, H, W] float32 in [0, 1]
    cameras: Cameras  # V views

    def __post_init__(self) -> None:
        if self.images.shape[0] != len(self.cameras) or self.images.ndim != 4:
            raise BadSceneError(
                f"{tuple(self.images.shape)} held-out images do not go with {len(self.cameras)} held-out cameras"
            )


@dataclass(frozen=True)
class OpenedTask:
    """A scene that was read: its digest tells whether it is done already, its task is made if it is not.

    Args:
        digest: SHA-256 of what the scene brings into its scores.
        task: makes the task, which may take long (geometry).
    """

    digest: str
    task: Callable[[], SceneTask]


@dataclass(frozen=True)
class TaskSource:
    """A scene that is read when its turn comes; one that cannot be read is then a failed scene with a name.

    Args:
        key: unique in an evaluation.
        open: reads it.
    """

    key: str
    open: Callable[[], OpenedTask]


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
