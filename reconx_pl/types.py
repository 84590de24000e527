"""The nouns of the package: cameras, point maps, clouds, clips, Gaussians; and how long work is followed.

Shape legend, used in every signature and trailing comment::

    B  batch          T  frames of a clip      V  views               N  points or Gaussians
    H  image rows     W  image columns         h, w  latent rows and columns
    C  channels       D  token width           S  structure tokens    K  SH coefficients ((degree + 1) ** 2)

Conventions: OpenCV camera axes (x right, y down, z forward); ``world_to_camera`` maps world points to camera points;
intrinsics in pixels with the image corner at (0, 0), so that the centre of the first pixel is (0.5, 0.5);
images are float32 in [0, 1] as [*, 3, H, W], or uint8 in [0, 255] until they reach the device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import ClassVar, NotRequired, Protocol, TypedDict, TypeVar

import torch
from torch import Tensor

from reconx_pl.errors import BadCameraError, BadSceneError

T = TypeVar("T", bound="Tensors")


class Progress(Protocol):
    """Follows long work: a progress bar, a log, a list of a test. What it raises stops the work."""

    def __call__(self, what: str, done: int, total: int | None, /) -> None:
        """Hear how far the work is.

        Args:
            what: is done now, in words: "alignment, loss 0.0123".
            done: how much of it is done, in whatever it counts: steps, images, bytes.
            total: of how much; None where that is not known.
        """
        ...


class Tensors:
    """What has tensors among its fields, and moves with them."""

    def to(self: T, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> T:
        """The same on a device; ``dtype`` is that of the floating-point tensors, None keeps theirs."""
        return self.mapped(lambda part: part.to(device=device, dtype=dtype if part.is_floating_point() else None))

    def copied(self: T) -> T:
        """A copy out of any graph: what was made in inference mode could not enter the graph of a fit."""
        return self.mapped(lambda part: part.detach().clone())

    def mapped(self: T, change: Callable[[Tensor], Tensor]) -> T:
        """The same with every tensor changed."""
        changed: dict[str, Tensor | Tensors] = {}
        for item in fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            if isinstance(value, Tensor):
                changed[item.name] = change(value)
            elif isinstance(value, Tensors):
                changed[item.name] = value.mapped(change)
        return replace(self, **changed)  # type: ignore[type-var]


@dataclass(frozen=True)
class Cameras(Tensors):
    """Pinhole cameras that share one image size.

    Args:
        world_to_camera: [V, 4, 4] rigid transforms, world units.
        intrinsics: [V, 3, 3] pixels, corner of the image at (0, 0).
        height: image rows, pixels.
        width: image columns, pixels.
    """

    world_to_camera: Tensor  # [V, 4, 4]
    intrinsics: Tensor  # [V, 3, 3]
    height: int
    width: int

    def __post_init__(self) -> None:
        w2c, intrinsics = self.world_to_camera, self.intrinsics
        if w2c.shape[-2:] != (4, 4) or intrinsics.shape[-2:] != (3, 3) or w2c.shape[:-2] != intrinsics.shape[:-2]:
            raise BadCameraError(
                f"cameras need world_to_camera [V, 4, 4] and intrinsics [V, 3, 3], "
                f"got {tuple(w2c.shape)} and {tuple(intrinsics.shape)}"
            )

    def __len__(self) -> int:
        return self.world_to_camera.shape[0]

    def __getitem__(self, index: int | slice | list[int] | Tensor) -> Cameras:
        """Select views; an integer keeps the view axis, so that the result is again ``Cameras``."""
        if isinstance(index, int):
            index = [index]
        return replace(self, world_to_camera=self.world_to_camera[index], intrinsics=self.intrinsics[index])

    @property
    def camera_to_world(self) -> Tensor:  # [V, 4, 4]
        return torch.linalg.inv(self.world_to_camera)

    @property
    def centers(self) -> Tensor:  # [V, 3] world units
        return self.camera_to_world[..., :3, 3]

    def check(self, source: str) -> Cameras:
        """Return self if every camera is usable.

        Raises:
            BadCameraError: NaN or infinity, a focal length that is not positive, a rotation that is not one;
                the message names ``source`` (usually a file) and the first bad view.
        """
        for view in range(len(self)):
            w2c, intrinsics = self.world_to_camera[view].double(), self.intrinsics[view].double()
            if not (torch.isfinite(w2c).all() and torch.isfinite(intrinsics).all()):
                raise BadCameraError(f"{source}: camera {view} has NaN or infinite values; remove that view")
            if intrinsics[0, 0] <= 0 or intrinsics[1, 1] <= 0:
                raise BadCameraError(
                    f"{source}: camera {view} has focal length ({intrinsics[0, 0]:g}, {intrinsics[1, 1]:g}) px; "
                    "it must be positive"
                )
            rotation = w2c[:3, :3]
            error = (rotation @ rotation.T - torch.eye(3, dtype=torch.float64)).abs().max()
            if error > 1e-3 or torch.linalg.det(rotation) < 0:
                raise BadCameraError(
                    f"{source}: the pose of camera {view} is not a rigid transform (off by {error:.2g}); "
                    "check the convention of the pose file"
                )
        return self


@dataclass(frozen=True)
class PointMap(Tensors):
    """One world point and one confidence per pixel, as DUSt3R gives them.

    ``confidence`` follows DUSt3R: 1 + exp(x), so 1 is the floor and there is no upper bound. ``valid`` is False where a
    pixel has no geometry; points there are zero.
    """

    points: Tensor  # [V, H, W, 3] world units
    confidence: Tensor  # [V, H, W], >= 1
    valid: Tensor  # [V, H, W] bool


@dataclass(frozen=True)
class PointCloud(Tensors):
    """Coloured world points with their confidence."""

    points: Tensor  # [N, 3] world units
    colors: Tensor  # [N, 3] in [0, 1]
    confidence: Tensor  # [N], >= 1

    def __len__(self) -> int:
        return self.points.shape[0]

    def __getitem__(self, index: slice | Tensor) -> PointCloud:
        return PointCloud(self.points[index], self.colors[index], self.confidence[index])


@dataclass(frozen=True)
class AlignmentQuality:
    """How well estimated cameras agree with those of a data set after the best similarity between them.

    With two views the distance of their centres is fitted exactly, so that translation tells of directions alone.

    Args:
        rotation_degrees: angle between the two orientations of each view.
        translation_percent: distance of the two centres of each view, in percent of the largest distance between two
            views of the data set (with two views the baseline).
    """

    rotation_degrees: tuple[float, ...]
    translation_percent: tuple[float, ...]

    # (ours) Two pose estimates of sharp photographs with wide baselines agree within a tenth of these. A camera that is
    # this far off shows the middle of the scene some 5 % of the image away from where it belongs, which no score of a
    # rendered pixel survives.
    MAX_DEGREES: ClassVar[float] = 3.0
    MAX_PERCENT: ClassVar[float] = 5.0

    @property
    def suspicious(self) -> bool:
        """Whether any view is turned by more than MAX_DEGREES or lies more than MAX_PERCENT off, or is not a number."""
        turned = all(degrees <= self.MAX_DEGREES for degrees in self.rotation_degrees)
        return not (turned and all(percent <= self.MAX_PERCENT for percent in self.translation_percent))

    def __str__(self) -> str:
        turn, off = self.rotation_degrees, self.translation_percent
        return (
            f"rotation {sum(turn) / len(turn):.2f}° on average, {max(turn):.2f}° at most; "
            f"translation {sum(off) / len(off):.2f} % of the extent, {max(off):.2f} % at most ({len(turn)} views)"
        )


@dataclass(frozen=True)
class Clip(Tensors):
    """A posed clip as it stands in a shard. The first and the last frame are the condition views (ReconX, IV-D).

    ``depth`` (z along the optical axis, world units, 0 = not known, infinity = known to be far, as the sky) and
    ``confidence`` belong to those two views.
    ``cloud`` is in world coordinates and in farthest-point order, so that any prefix is a valid sub-sample.
    ``geometry`` says where an estimator's cloud comes from; it is empty where depth or points came with the data.
    ``alignment`` is there if that estimator found poses of its own, and its cloud was moved into the world of
    ``cameras`` by them.
    """

    key: str
    dataset: str
    scene: str
    frames: Tensor  # [T, 3, H, W] uint8
    cameras: Cameras  # T views
    frame_indices: tuple[int, ...]  # of the T frames in the source video or folder
    fps: float  # frames a second of the clip as sampled
    caption: str = ""
    depth: Tensor | None = None  # [2, H, W] float32
    confidence: Tensor | None = None  # [2, H, W] float32
    cloud: PointCloud | None = None
    geometry: str = ""
    alignment: AlignmentQuality | None = None

    def __post_init__(self) -> None:
        if self.frames.ndim != 4 or self.frames.shape[0] != len(self.cameras):
            raise BadSceneError(
                f"clip {self.key}: {tuple(self.frames.shape)} frames do not go with {len(self.cameras)} cameras"
            )

    @property
    def images(self) -> Tensor:  # [T, 3, H, W] float32 in [0, 1]
        return self.frames.float() / 255.0


@dataclass(frozen=True)
class ClipRenders(Tensors):
    """What is known of clips, rendered into the cameras of their frames: the condition of guidance by rendering.

    Args:
        color: [B, R, T, 3, H, W] in [0, 1], R renders of each frame; without meaning where nothing covers a pixel.
        coverage: [B, R, T, H, W] in [0, 1], the share of a pixel that a render covers.
        confirmed: [B, T, H, W] bool, pixels that the photographs confirm (``confirmed_pixels``); None where nobody
            asked.
    """

    color: Tensor
    coverage: Tensor
    confirmed: Tensor | None = None

    def __post_init__(self) -> None:
        if self.color.ndim != 6 or self.coverage.shape != (*self.color.shape[:3], *self.color.shape[4:]):
            raise BadSceneError(
                f"renders of clips are [B, R, T, 3, H, W] with coverage [B, R, T, H, W], got {tuple(self.color.shape)} "
                f"and {tuple(self.coverage.shape)}"
            )


class ClipBatch(TypedDict):
    """What the data loader yields: frames stay uint8 until they are on the device.

    A batch of caches has those frames alone that no cache stands in for: all, the first, or none (then no such key).
    What renders are made of is there where the network is guided by them.
    """

    key: list[str]
    caption: list[str]
    frames: NotRequired[Tensor]  # [B, T, 3, H, W] uint8
    caches: NotRequired[dict[str, Tensor]]  # by member name: [B, ...] float16, see reconx_pl/data/shards/caches.py
    folder: NotRequired[str]  # of the shards, with caches
    world_to_camera: Tensor  # [B, T, 4, 4] float32
    intrinsics: Tensor  # [B, T, 3, 3] float32
    fps: Tensor  # [B] float32
    points: Tensor  # [B, N, 3] float32, world units, farthest-point order
    colors: NotRequired[Tensor]  # [B, N, 3] float32 in [0, 1], of the points
    point_confidence: NotRequired[Tensor]  # [B, N] float32 of the points
    views: NotRequired[Tensor]  # [B, 2, 3, H, W] uint8, first and last frame
    depth: NotRequired[Tensor]  # [B, 2, H, W] float32 of these, see ``Clip``
    confidence: NotRequired[Tensor]  # [B, 2, H, W] float32 of these
    splats: NotRequired[Tensor]  # [B, T, 4, H, W] uint8, colour and coverage of a short fit of these
    renders: NotRequired[ClipRenders]  # made of the above on the device


@dataclass
class Gaussians(Tensors):
    """A 3D Gaussian scene in the unconstrained parameters that are optimised (Kerbl et al. 2023).

    Attributes:
        means: [N, 3] world units.
        quaternions: [N, 4] wxyz, any norm.
        log_scales: [N, 3] natural logarithm of the standard deviations in world units.
        opacity_logits: [N] before the sigmoid.
        sh: [N, K, 3] spherical harmonics coefficients, colour = max(0, SH(direction) + 0.5).
    """

    means: Tensor
    quaternions: Tensor
    log_scales: Tensor
    opacity_logits: Tensor
    sh: Tensor
    background: Tensor = field(default_factory=lambda: torch.zeros(3))  # [3] in [0, 1]

    def __len__(self) -> int:
        return self.means.shape[0]

    @property
    def sh_degree(self) -> int:
        return int(round(self.sh.shape[1] ** 0.5)) - 1
