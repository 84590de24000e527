"""The given views of a scene, with all that is known of them: what the chain starts from."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from reconx_pl.types import Cameras, PointCloud, Tensors


@dataclass(frozen=True)
class InputViews(Tensors):
    """C views of a scene, C >= 1, in the order in which a camera path visits them.

    Attributes:
        key: unique among the scenes of a run; seeds everything random, together with a seed.
        images: [C, 3, H, W] float32 in [0, 1].
        cameras: C views.
        cloud: points of the scene, world units, farthest-point order.
        depth: [C, H, W] z-depth, world units, 0 = none; None where the cloud is all there is.
        confidence: [C, H, W] of the depth, on DUSt3R's scale; None where it is not known.
        measured: whether depth came with the data; an estimator's gives way to a global alignment of all frames.
        indices: C frame numbers in the source.
        dataset, scene: names, for the record.
        fps: frames a second that generated frames are said to have.
        caption: what a model is told about the scene.
        geometry: where depth or cloud come from, for the record.
        closed: whether the last view is a neighbour of the first, so that a path leads back to it.
    """

    key: str
    images: Tensor
    cameras: Cameras
    cloud: PointCloud | None
    depth: Tensor | None = None
    confidence: Tensor | None = None
    measured: bool = True
    indices: tuple[int, ...] = ()
    dataset: str = ""
    scene: str = ""
    fps: float = 8.0
    caption: str = ""
    geometry: str = ""
    closed: bool = False

    def __len__(self) -> int:
        return len(self.cameras)

    @property
    def visited(self) -> list[int]:
        """Views in the order of a path: all, and the first one again where it is closed."""
        return [*range(len(self)), *([0] if self.closed else [])]
