"""Cameras seen from above, as a drawing for the report."""

from __future__ import annotations

import numpy as np

from reconx_pl.errors import ConfigurationError
from reconx_pl.geometry.camera_paths import up_axis
from reconx_pl.types import Cameras, PointCloud
from reconx_pl.visualization.contact_sheet import spread

DOTS = 500  # points drawn at most
_WIDTH, _HEIGHT, _MARGIN = 400.0, 400.0, 40.0  # at most; a phone has as many, so that letters of 12 are legible
_REACH = 5.0  # the drawing ends this many extents of the cameras around them, if the points go on
_CENTRAL = (0.03, 0.97)  # quantiles of the points that the drawing holds: a few lie far out
_NUMBERED = 24  # cameras that get a number each; of more, every few


def plan(cameras: Cameras, cloud: PointCloud | None, closed: bool) -> tuple[str, int]:
    """An SVG of the cameras in the order of visiting, and how many of the points it shows.

    Each camera is the triangle of what it sees to its left and right; the first one is filled. The picture's upper side
    is where the cameras look on average, or where the first looks if they look everywhere.

    Args:
        cameras: V >= 1 views in the order of visiting.
        cloud: points to thin to dots; None draws none.
        closed: the line goes from the last back to the first.
    """
    eyes, rays, ground = _from_above(cameras)
    dots = np.zeros((0, 2)) if cloud is None else cloud.points.double().numpy() @ ground.T
    low, high = _bounds(eyes, dots)
    scale = min((_WIDTH - 2 * _MARGIN) / (high - low)[0], (_HEIGHT - 2 * _MARGIN) / (high - low)[1])
    width, height = _WIDTH, float((high - low)[1] * scale) + 2 * _MARGIN
    middle = np.array([width, height]) / 2

    def placed(points: np.ndarray) -> np.ndarray:
        return middle + (points - (low + high) / 2) * scale * (1, -1)

    count = len(eyes)
    length = float(np.clip(90 / np.sqrt(count), 16, 32))  # of a triangle
    at, sides = placed(eyes), rays * length * (1, -1)
    inside = placed(dots)
    inside = inside[((inside > 2) & (inside < (width - 2, height - 2))).all(axis=1)]
    shown = inside[spread(len(inside), DOTS)]
    parts = [
        f'<svg class="plan" viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="Cameras seen from above">',
        '<g class="dots">' + "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="1.6"/>' for x, y in shown) + "</g>",
        f'<{"polygon" if closed else "polyline"} class="way" points="{_joined(at)}"/>',
    ]
    for view in range(count):
        corners = np.stack([at[view], at[view] + sides[view, 0], at[view] + sides[view, 1]])
        first = " first" if view == 0 else ""
        parts.append(f'<polygon class="camera{first}" points="{_joined(corners)}"/>')
    parts += [f'<circle class="eye" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in at]
    every = -(-count // _NUMBERED)
    for view in range(0, count, every):
        ahead = sides[view].mean(axis=0)
        x, y = at[view] - ahead / max(float(np.linalg.norm(ahead)), 1e-9) * 12
        parts.append(f'<text x="{x:.1f}" y="{y:.1f}">{view + 1}</text>')
    return "".join(parts) + "</svg>", len(shown)


def _from_above(cameras: Cameras) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centres [V, 2], directions [V, 2, 2] to the left and right ends of the image, and axes [2, 3] of the ground."""
    pose = cameras.camera_to_world.detach().double().cpu().numpy()
    lens = cameras.intrinsics.detach().double().cpu().numpy()
    right, down, forward = pose[:, :3, 0], pose[:, :3, 1], pose[:, :3, 2]
    try:
        up = up_axis(cameras).double().cpu().numpy()
    except ConfigurationError:  # turned against each other: the first has to do
        up = -down[0]

    def level(direction: np.ndarray) -> np.ndarray:
        return direction - (direction @ up) * up

    guesses = [level(forward.mean(axis=0)), level(forward[0]), level(-down[0])]
    ahead = next(guess for guess in guesses if np.linalg.norm(guess) > 0.1)
    ahead /= np.linalg.norm(ahead)
    ground = np.stack([np.cross(ahead, up), ahead])
    ends = [(edge - lens[:, 0, 2]) / lens[:, 0, 0] for edge in (0, cameras.width)]
    rays = np.stack([forward + end[:, None] * right for end in ends], axis=1)
    return pose[:, :3, 3] @ ground.T, rays @ ground.T, ground


def _bounds(eyes: np.ndarray, dots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper corner of what is drawn: all cameras, and the points around them."""
    low, high = eyes.min(axis=0), eyes.max(axis=0)
    if len(dots):
        extent = float((high - low).max()) or float(np.ptp(dots, axis=0).max())
        central = np.quantile(dots, _CENTRAL, axis=0)
        low, high = (
            np.minimum(low, np.maximum(central[0], low - _REACH * extent)),
            np.maximum(high, np.minimum(central[1], high + _REACH * extent)),
        )
    least = 0.4 * float((high - low).max()) or 1.0  # not flatter than that
    missing = np.maximum(least - (high - low), 0) / 2
    return low - missing, high + missing


def _joined(points: np.ndarray) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
