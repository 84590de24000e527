"""One entry of a protocol, loaded: context views that a method may see, and target views that score it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from reconx_pl.errors import BadSceneError
from reconx_pl.types import Cameras, PointCloud


@dataclass(frozen=True)
class EntryViews:
    """What a protocol gives for one scene, or one entry of an index.

    Args:
        key: unique in a protocol.
        dataset: name of the data set.
        scene: name of the scene in it.
        context_images: [C, 3, H, W] float32 in [0, 1], C >= 2, in the order in which they are visited.
        context_cameras: C views, true.
        context_indices: C frame numbers in the source.
        target_images: [V, 3, H, W], never shown to view generator, geometry or fit.
        target_cameras: V views, true.
        target_indices: V frame numbers in the source.
        target_masks: [V, H, W] bool, True where a target is scored; None scores all of it.
        context_depth: [C, H, W] z-depth, world units, 0 = none; None where no depth is known.
        context_confidence: [C, H, W] of that depth, as DUSt3R gives it; None where it is not known.
        cloud: points of the scene's geometry, farthest-point order; None where there is none.
        geometry: where depth or cloud come from, for the record.
        fps: frames a second that a generated clip is said to have.
        caption: text that belongs to the scene.
    """

    key: str
    dataset: str
    scene: str
    context_images: Tensor
    context_cameras: Cameras
    context_indices: tuple[int, ...]
    target_images: Tensor
    target_cameras: Cameras
    target_indices: tuple[int, ...]
    target_masks: Tensor | None = None
    context_depth: Tensor | None = None
    cloud: PointCloud | None = None
    geometry: str = ""
    fps: float = 8.0
    caption: str = ""
    context_confidence: Tensor | None = None

    def __post_init__(self) -> None:
        if self.context_images.shape[0] < 2:
            raise BadSceneError(f"{self.key}: a protocol entry needs two context views or more")
        for what, images, cameras, indices in (
            ("context", self.context_images, self.context_cameras, self.context_indices),
            ("target", self.target_images, self.target_cameras, self.target_indices),
        ):
            if images.ndim != 4 or not images.shape[0] == len(cameras) == len(indices):
                raise BadSceneError(
                    f"{self.key}: {tuple(images.shape)} {what} images do not go with {len(cameras)} cameras "
                    f"and {len(indices)} frame numbers"
                )
            if images.shape[-2:] != (cameras.height, cameras.width):
                raise BadSceneError(
                    f"{self.key}: {what} images of {tuple(images.shape[-2:])} pixels do not go with cameras of "
                    f"{(cameras.height, cameras.width)}; resize both alike"
                )
        size = tuple(self.context_images.shape[-2:])
        if self.target_images.shape[-2:] != size:
            raise BadSceneError(
                f"{self.key}: targets of {tuple(self.target_images.shape[-2:])} pixels, contexts of {size}"
            )
        for what, part, count in (
            ("context depth", self.context_depth, len(self.context_indices)),
            ("context confidence", self.context_confidence, len(self.context_indices)),
            ("target masks", self.target_masks, len(self.target_indices)),
        ):
            if part is not None and tuple(part.shape) != (count, *size):
                raise BadSceneError(f"{self.key}: {what} {tuple(part.shape)} are not {count} maps of {size} pixels")


@dataclass(frozen=True)
class LazyViews:
    """An entry that is loaded when its turn comes; one that cannot be loaded is then a failed scene with a name.

    Args:
        key: of the views that ``load`` returns; unique in an evaluation.
        load: gives the views.
    """

    key: str
    load: Callable[[], EntryViews]
