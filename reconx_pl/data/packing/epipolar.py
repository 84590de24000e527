"""A picture that shows at a glance whether cameras and images agree: matched points and their epipolar lines.

A match lies on the epipolar line of its partner (Hartley and Zisserman, chapter 9) whatever the scene's depth is, so a
wrong convention of the poses, a wrong focal length or a wrong crop moves the lines off the points.
"""

from __future__ import annotations

import colorsys
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from reconx_pl.data.formats.scene import RawScene
from reconx_pl.errors import BadSceneError, ConfigurationError
from reconx_pl.geometry.cameras import fundamental_matrix
from reconx_pl.types import Cameras, Clip

logger = logging.getLogger(__name__)

MIN_MATCHES = 12
_DISAGREE = 2.0  # pixels in an image of 640; wrong conventions gave 2.6 and more, true cameras less than 0.8
_DRAWN = 14  # lines in one picture; more cannot be told apart


@dataclass(frozen=True)
class EpipolarPair:
    """Matches of two views and how far they lie from each other's epipolar lines.

    Attributes:
        first, second: indices of the views.
        points: [M, 2, 2] pixels of the full images: match, view, (x, y).
        fundamental: [3, 3], x_second^T F x_first = 0.
        distance: [M] pixels, the mean over the two views of the distance of a point from the line of its partner.
    """

    first: int
    second: int
    points: np.ndarray
    fundamental: np.ndarray
    distance: np.ndarray

    @property
    def median(self) -> float:
        """Median distance, pixels."""
        return float(np.median(self.distance))


def draw_epipolar_check(scene: RawScene | Clip, path: Path, pairs: int = 4, *, long_side: int = 480) -> float:
    """Draw matches and epipolar lines of some pairs of views into one PNG.

    Args:
        scene: a raw scene or a clip, at least two views.
        path: the picture; its folder is made. On the left the first view of a pair with its points, on the right the
            second view with their epipolar lines and the matched points in the same colours.
        pairs: how many pairs, spread over the scene.
        long_side: SIFT works on images reduced to this many pixels; distances are in pixels of the full images.

    Returns:
        The median distance over all matches, pixels. Good cameras give less than 1 in images 640 pixels wide, a wrong
        convention several; above 2 (in proportion to the width) the picture and the log say that they disagree.

    Raises:
        BadSceneError: fewer than two views, or no pair with enough matches and a baseline.
    """
    found = epipolar_pairs(scene, pairs, long_side=long_side)
    median = float(np.median(np.concatenate([pair.distance for pair in found])))
    load = _image_loader(scene)
    limit = _DISAGREE * max(1.0, max(load(found[0].first).shape[:2]) / 640)
    verdict = f"median epipolar distance {median:.2f} px"
    if median > limit:
        verdict += f", more than {limit:.1f}:\ncameras and images disagree"
    _draw(_name(scene), load, found, verdict, path)
    level = logging.WARNING if median > limit else logging.INFO
    logger.log(level, "%s: %s over %d pairs, drawn in %s", _name(scene), verdict.replace("\n", " "), len(found), path)
    return median


def epipolar_pairs(scene: RawScene | Clip, pairs: int = 4, *, long_side: int = 480) -> list[EpipolarPair]:
    """Match pairs of views spread over the scene and measure them; see :func:`draw_epipolar_check`.

    A pair starts an eighth of the scene apart and moves closer together as long as it has fewer than ``MIN_MATCHES``
    matches.
    """
    if pairs < 1 or long_side < 32:
        raise ConfigurationError(f"pairs must be positive and long_side at least 32, got {pairs} and {long_side}")
    load = _image_loader(scene)
    count = len(scene) if isinstance(scene, RawScene) else scene.frames.shape[0]
    if count < 2:
        raise BadSceneError(f"{_name(scene)}: an epipolar check needs two views, there is {count}")
    features: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def features_of(view: int) -> tuple[np.ndarray, np.ndarray]:
        if view not in features:
            features[view] = _sift(load(view), long_side)
        return features[view]

    found = []
    widest = max(1, count // 8)
    for first in dict.fromkeys(
        np.linspace(0, count - 1 - widest, min(pairs, count - widest)).round().astype(int).tolist()
    ):
        step = widest
        while step:
            pair = _measure(scene, first, first + step, features_of(first), features_of(first + step))
            if pair is not None:
                found.append(pair)
                break
            step //= 2
        else:
            logger.info("%s: too few matches or no baseline beside view %d", _name(scene), first)
    if not found:
        raise BadSceneError(
            f"{_name(scene)}: no pair of views has {MIN_MATCHES} matches and a baseline, so its cameras cannot be "
            "checked; use views that overlap and have texture"
        )
    return found


def epipolar_distance(points: np.ndarray, fundamental: np.ndarray) -> np.ndarray:
    """Mean over both views of the distance of matched points [M, 2, 2] from the line of their partner: [M] pixels."""
    ones = np.ones((len(points), 1))
    first, second = np.hstack([points[:, 0], ones]), np.hstack([points[:, 1], ones])
    lines_second, lines_first = first @ fundamental.T, second @ fundamental
    residual = np.abs((second * lines_second).sum(axis=1))
    norms = [np.maximum(np.linalg.norm(lines[:, :2], axis=1), 1e-12) for lines in (lines_first, lines_second)]
    return 0.5 * (residual / norms[0] + residual / norms[1])


def _name(scene: RawScene | Clip) -> str:
    return str(scene.source) if isinstance(scene, RawScene) else f"clip {scene.key}"


def _image_loader(scene: RawScene | Clip) -> Callable[[int], np.ndarray]:
    if isinstance(scene, RawScene):
        return scene.load_image
    frames = scene.frames
    return lambda view: np.ascontiguousarray(frames[view].permute(1, 2, 0).numpy())


def _two_cameras(scene: RawScene | Clip, first: int, second: int) -> Cameras:
    if isinstance(scene, Clip):
        return scene.cameras[[first, second]].to(dtype=torch.float64)
    one, other = scene.frames[first].camera, scene.frames[second].camera
    return Cameras(  # the size plays no part in the fundamental matrix, so images of two sizes can be compared
        torch.cat([one.world_to_camera, other.world_to_camera]),
        torch.cat([one.intrinsics, other.intrinsics]),
        one.height,
        one.width,
    )


def _sift(image: np.ndarray, long_side: int) -> tuple[np.ndarray, np.ndarray]:
    """Points [M, 2] (x, y) in pixels of the full image, and descriptors [M, 128]; both may be empty."""
    from skimage.feature import SIFT  # slow to import

    height, width = image.shape[:2]
    scale = min(1.0, long_side / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    grey = Image.fromarray(image).convert("L").resize(size, Image.Resampling.LANCZOS)
    detector = SIFT(upsampling=1)
    try:
        detector.detect_and_extract(np.asarray(grey, dtype=np.float32) / 255.0)
    except RuntimeError:  # scikit-image's way to say that an image has no features
        return np.zeros((0, 2)), np.zeros((0, 128), dtype=np.uint8)
    rows_columns, descriptors = np.asarray(detector.positions), np.asarray(detector.descriptors)
    return (rows_columns[:, ::-1] + 0.5) * (np.array([width, height]) / np.array(size)), descriptors


def _measure(
    scene: RawScene | Clip,
    first: int,
    second: int,
    one: tuple[np.ndarray, np.ndarray],
    other: tuple[np.ndarray, np.ndarray],
) -> EpipolarPair | None:
    from skimage.feature import match_descriptors

    if min(len(one[0]), len(other[0])) < MIN_MATCHES:
        return None
    matches = match_descriptors(one[1], other[1], cross_check=True, max_ratio=0.75)
    fundamental = fundamental_matrix(_two_cameras(scene, first, second), 0, 1).numpy()
    if len(matches) < MIN_MATCHES or not np.any(fundamental):
        return None
    points = np.stack([one[0][matches[:, 0]], other[0][matches[:, 1]]], axis=1)
    return EpipolarPair(first, second, points, fundamental, epipolar_distance(points, fundamental))


def _draw(name: str, load: Callable[[int], np.ndarray], found: list[EpipolarPair], verdict: str, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no pyplot: it holds global state
    from matplotlib.figure import Figure

    height, width = load(found[0].first).shape[:2]
    panel = min(5.5, max(3.0, 4.5 * width / height))  # inches; portraits stay narrow, to fit a screen
    size = (2.0 * panel, panel * height / width * len(found) + 0.35 * (len(found) + 2))
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{name if len(name) <= 60 else '...' + name[-57:]}\n{verdict}", fontsize=9)
    axes = figure.subplots(len(found), 2, squeeze=False)
    for (left, right), pair in zip(axes, found, strict=True):
        chosen = _spread(pair.points[:, 0], _DRAWN)
        for axis, view in ((left, pair.first), (right, pair.second)):
            image = load(view)
            axis.imshow(image, extent=(0, image.shape[1], image.shape[0], 0), alpha=0.75)
            axis.set_axis_off()
        left.set_title(f"view {pair.first}", fontsize=8)
        right.set_title(f"view {pair.second}: median {pair.median:.2f} px of {len(pair.points)} matches", fontsize=8)
        limits = right.get_xlim(), right.get_ylim()
        for number, match in enumerate(chosen):
            color = colorsys.hsv_to_rgb(number / len(chosen), 1.0, 0.9)
            (x, y), (u, v) = pair.points[match]
            a, b, c = pair.fundamental @ np.array([x, y, 1.0])
            left.plot(x, y, "o", color=color, markersize=5, markeredgecolor="white", markeredgewidth=0.7)
            length = max(np.hypot(a, b), 1e-12)
            foot = np.array([u, v]) - np.array([a, b]) * (a * u + b * v + c) / length**2  # of the match on the line
            ends = foot + np.outer([-1.0, 1.0], np.array([-b, a]) / length * 4.0 * max(limits[0][1], limits[1][0]))
            right.plot(ends[:, 0], ends[:, 1], "-", color=color, linewidth=1.0)
            right.plot(u, v, "o", color=color, markersize=5, markeredgecolor="white", markeredgewidth=0.7)
        right.set_xlim(limits[0])
        right.set_ylim(limits[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")


def _spread(points: np.ndarray, count: int) -> list[int]:
    """Indices of points [M, 2] that lie far from each other, greedily."""
    chosen = [0]
    distance = np.linalg.norm(points - points[0], axis=1)
    while len(chosen) < min(count, len(points)):
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(points - points[chosen[-1]], axis=1))
    return chosen
