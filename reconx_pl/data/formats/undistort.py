"""Takes radial and tangential lens distortion out of an image (Brown 1966, in OpenCV's parameters)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import ndimage

from reconx_pl.errors import BadCameraError

NEGLIGIBLE_PIXELS = 0.1  # below this no pixel moves visibly, and resampling would only blur


def distort(points: np.ndarray, coefficients: tuple[float, ...]) -> np.ndarray:
    """Normalised pinhole points [..., 2] to where the lens puts them; coefficients (k1, k2, p1, p2[, k3])."""
    k1, k2, p1, p2, k3 = (*coefficients, 0.0)[:5]
    x, y = points[..., 0], points[..., 1]
    r2 = x * x + y * y
    radial = 1.0 + r2 * (k1 + r2 * (k2 + r2 * k3))
    return np.stack(
        [
            x * radial + 2.0 * p1 * x * y + p2 * (r2 + 2.0 * x * x),
            y * radial + p1 * (r2 + 2.0 * y * y) + 2.0 * p2 * x * y,
        ],
        axis=-1,
    )


@dataclass(frozen=True)
class Undistortion:
    """How to resample one size of image of one lens.

    ``camera`` and ``target`` are (fx, fy, cx, cy) in pixels of the distorted image and of the pinhole image; the two
    images have one size. The target's focal length is the smallest one for which every pixel of the pinhole image is
    seen by the lens, so that no border has to be invented.
    """

    camera: tuple[float, float, float, float]
    target: tuple[float, float, float, float]
    coefficients: tuple[float, ...]
    width: int
    height: int

    @classmethod
    def plan(
        cls, intrinsics: np.ndarray, coefficients: tuple[float, ...], width: int, height: int, name: str
    ) -> Undistortion | None:
        """Choose the pinhole camera; None if the distortion moves no pixel by more than ``NEGLIGIBLE_PIXELS``.

        Raises:
            BadCameraError: no zoom between 0.5 and 2 gives an image without gaps; names ``name``.
        """
        if not np.isfinite(coefficients).all():
            raise BadCameraError(f"{name}: its distortion coefficients are not finite")
        fx, fy, cx, cy = intrinsics[0, 0], intrinsics[1, 1], intrinsics[0, 2], intrinsics[1, 2]
        focal, centre = np.array([fx, fy]), np.array([cx, cy])
        border = _border(width, height)
        moved = np.abs(distort((border - centre) / focal, coefficients) * focal + centre - border).max()
        if moved < NEGLIGIBLE_PIXELS:
            return None

        def covered(zoom: float) -> bool:
            # whole rays from the centre to the border: a lens polynomial that folds back would otherwise pass
            rays = (border - centre)[:, None] * np.linspace(0.1, 1.0, 10)[None, :, None] / (focal * zoom)  # [P, 10, 2]
            seen = distort(rays, coefficients)
            growing = (np.diff(np.linalg.norm(seen, axis=-1), axis=1) > 0).all()
            pixels = seen[:, -1] * focal + centre
            return bool(growing and (pixels >= 0).all() and (pixels <= (width, height)).all())

        low, high = 0.5, 2.0
        if not covered(high):
            raise BadCameraError(
                f"{name}: the distortion {tuple(round(c, 5) for c in coefficients)} is too strong for this model; "
                "undistort the images with the tool that made the poses, and read its pinhole cameras"
            )
        for _ in range(30):
            middle = (low + high) / 2
            low, high = (low, middle) if covered(middle) else (middle, high)
        camera = (float(fx), float(fy), float(cx), float(cy))
        return cls(
            camera, (camera[0] * high, camera[1] * high, camera[2], camera[3]), tuple(coefficients), width, height
        )

    @property
    def pinhole(self) -> np.ndarray:
        """[3, 3] intrinsics of the undistorted image."""
        fx, fy, cx, cy = self.target
        return np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])

    def image(self, image: np.ndarray) -> np.ndarray:
        """uint8 [H, W, 3] as the pinhole camera sees it, bilinear."""
        grid = _sampling_grid(self, self.height, self.width)
        channels = [
            ndimage.map_coordinates(image[..., c].astype(np.float32), grid, order=1, mode="nearest")
            for c in range(image.shape[2])
        ]
        return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)

    def depth(self, depth: np.ndarray) -> np.ndarray:
        """Float32 z-depth [h, w] of any size as the pinhole camera sees it; nearest, so that no depth is invented."""
        height, width = depth.shape
        return ndimage.map_coordinates(depth, _sampling_grid(self, height, width), order=0, mode="nearest")


def _border(width: int, height: int) -> np.ndarray:  # [P, 2] pixels
    across, down = np.linspace(0, width, 65), np.linspace(0, height, 65)
    return np.concatenate(
        [np.stack([across, np.full(65, edge)], axis=-1) for edge in (0.0, height)]
        + [np.stack([np.full(65, edge), down], axis=-1) for edge in (0.0, width)]
    )


@lru_cache(maxsize=4)
def _sampling_grid(plan: Undistortion, height: int, width: int) -> np.ndarray:  # [2, height, width] rows, columns
    scale = np.array([width / plan.width, height / plan.height])
    focal, centre = np.array(plan.camera[:2]) * scale, np.array(plan.camera[2:]) * scale
    columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    rays = (np.stack([columns, rows], axis=-1) - np.array(plan.target[2:]) * scale) / (
        np.array(plan.target[:2]) * scale
    )
    pixels = distort(rays, plan.coefficients) * focal + centre - 0.5  # array indices start at pixel centres
    return np.ascontiguousarray(np.moveaxis(pixels[..., ::-1], -1, 0)).astype(np.float32)
