"""Gains of photographs that were taken with different exposures, from the colours of points that several of them see.

(ours) A gain multiplies the values of a photograph, channel by channel. An exposure multiplies light, and a tone curve
that is near a power, as sRGB's, makes a factor of values of it; another white balance is a factor a channel.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from reconx_pl.errors import BadSceneError, ConfigurationError
from reconx_pl.geometry.cameras import in_view, project, resize_cameras
from reconx_pl.geometry.visibility import visible_points
from reconx_pl.types import Cameras, PointCloud

EvenExposures = Literal["auto", "always", "never"]

POINTS = 8192  # of the cloud, the first: they are spread over the scene
SHORT_SIDE = 96  # pixels: a mean over some pixels forgives poses that are a little off
DARK, BRIGHT = 0.06, 0.97  # values beyond tell little of the light: noise and black level, saturation
NEIGHBOURS, HUBS = 24, 8  # photographs that each is compared with: the nearest, and some that all are compared with
FEWEST = 30  # points that two photographs share, for their ratio to count
FLOOR = 0.01  # logarithm: no ratio of two photographs is known better, however many points they share
# Chosen on photographs as they were taken (benchmarks/README.md): those of cameras that expose by themselves depart by
# up to 6 % from their neighbours; where points are wrong, or light changes with the view, by 10 %, 9 times the error.
THRESHOLD = 0.08  # logarithm: a photograph that departs by less is of the exposure of its neighbours,
SIGMAS = 10.0  # and so is one whose departure is not this many times its own error

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExposureGains:
    """What brings V photographs to one exposure, that of the median photograph.

    Attributes:
        gains: [V, 3] factors of a photograph's values; 1 where nothing ties a photograph to the others.
        errors: [V, 3] standard errors of their logarithms.
    """

    gains: Tensor
    errors: Tensor

    @property
    def brightness(self) -> Tensor:
        """[V] logarithm of the gain, mean of the channels."""
        return self.gains.log().mean(dim=1)


def exposure_gains(
    images: Tensor, cameras: Cameras, points: Tensor, fitted: Sequence[int] | None = None
) -> ExposureGains:
    """Find the gains of photographs: medians of colour ratios of two photographs at a time, then least squares.

    Args:
        images: [V, 3, H, W] in [0, 1].
        cameras: V views.
        points: [N, 3] on the surfaces, world units; the first ``POINTS`` are used.
        fitted: views whose gains are found among themselves alone; those of the others follow from these. None is all.

    Raises:
        BadSceneError: images and cameras do not go together.
    """
    if len(images) != len(cameras) or images.shape[-2:] != (cameras.height, cameras.width):
        raise BadSceneError(
            f"images {tuple(images.shape)} do not go with {len(cameras)} cameras of {cameras.height} x {cameras.width}"
        )
    among = list(range(len(images))) if fitted is None else list(fitted)
    ratios, errors = _ratios(_logarithms(images, cameras, points[:POINTS]), _pairs(cameras.centers, among))
    gains, variance = torch.zeros_like(ratios[0]), torch.full_like(ratios[0], torch.inf)
    for channel in range(3):
        ratio, weight = ratios[..., channel], errors[..., channel].square().reciprocal()
        inner = weight[among][:, among]
        # minus the Laplacian of the graph of pairs; the ridge holds what no pair ties at 0
        normal = torch.diag(inner.sum(dim=1) + 1e-6) - inner
        inverse = torch.linalg.inv(normal)
        found = inverse @ (inner * ratio[among][:, among]).sum(dim=1)
        # how well pairs agree with each other: light and gloss that change with the view are no gain
        misfit = (inner * (ratio[among][:, among] - found[:, None] + found).square()).sum() / 2
        spare = int((inner > 0).sum()) // 2 - len(among) + 1
        inflation = (misfit / spare).clamp(min=1) if spare > 0 else misfit.new_ones(())
        tied = inner.sum(dim=1) > 0
        level = found[tied].quantile(0.5) if bool(tied.any()) else found.new_zeros(())
        gains[among, channel] = torch.where(tied, level - found, 0.0)
        variance[among, channel] = torch.where(tied, inflation * (inverse.diagonal() - inverse.mean()), torch.inf)
        for view in sorted(set(range(len(images))) - set(among)):
            total = weight[view, among].sum()
            if total > 0:
                gains[view, channel] = (
                    weight[view, among] * (gains[among, channel] - ratio[view, among])
                ).sum() / total
                variance[view, channel] = 1 / total
    return ExposureGains(gains.exp().float(), variance.clamp(min=0).sqrt().float())


def departures(levels: Tensor, centers: Tensor) -> Tensor:
    """By how much each level departs from what its neighbours on both sides make likely.

    A camera that sets its exposure by itself, in a walk or a video, changes it steadily; the view-dependent colours of
    a fit follow that, better than a scene of one exposure does. What jumps from view to view is what they cannot
    follow.

    Args:
        levels: [V] logarithms.
        centers: [V, 3] of the cameras.

    Returns:
        [V] differences from the interpolation between the nearest view and the nearest one on its other side; 0 where
        none is there. Where no view lies between others, as with two, differences from the mean.
    """
    ways = centers[None] - centers[:, None]  # [V, V, 3], from the first to the second
    distance = ways.norm(dim=2)
    found = torch.zeros_like(levels)
    between = False
    for view in range(len(levels)):
        others = [other for other in range(len(levels)) if other != view]
        first = min(others, key=lambda other: float(distance[view, other]), default=None)
        beyond = [other for other in others if first is not None and float(ways[view, other] @ ways[view, first]) < 0]
        if first is None or not beyond:
            continue
        second = min(beyond, key=lambda other: float(distance[view, other]))
        share = distance[view, first] / (distance[view, first] + distance[view, second])
        found[view] = levels[view] - torch.lerp(levels[first], levels[second], share)
        between = True
    return found if between else levels - levels.mean()


def exposures_differ(gains: ExposureGains, cameras: Cameras) -> bool:
    """Whether photographs were exposed differently: one at least departs by ``THRESHOLD``, and clearly so."""
    off = departures(gains.brightness, cameras.centers.to(gains.gains)).abs()
    return bool(((off > THRESHOLD) & (off > SIGMAS * gains.errors.mean(dim=1))).any())


def check_even_exposures(setting: str) -> None:
    """Raise ConfigurationError for what is no setting."""
    if setting not in get_args(EvenExposures):
        raise ConfigurationError(f"even_exposures is {', '.join(get_args(EvenExposures))}; got {setting!r}")


def wanted_gains(
    images: Tensor, cameras: Cameras, points: Tensor, setting: EvenExposures, fitted: list[int] | None = None
) -> ExposureGains | None:
    """The gains that photographs are to be evened with; None leaves them alone. See ``exposure_gains``.

    Args:
        images: [V, 3, H, W] in [0, 1].
        cameras: V views.
        points: [N, 3] on the surfaces, world units.
        setting: "auto" evens where exposures of the ``fitted`` differ clearly, "always" whatever they are.
        fitted: see ``exposure_gains``.
    """
    if setting == "never" or len(images) < 2:
        return None
    found = exposure_gains(images, cameras, points, fitted)
    among = list(range(len(images))) if fitted is None else fitted
    if setting == "auto" and not exposures_differ(
        ExposureGains(found.gains[among], found.errors[among]), cameras[among]
    ):
        return None
    _LOG.info("%s: gains %s", sentence(found), [[round(one, 3) for one in row] for row in found.gains.tolist()])
    return found


def sentence(gains: ExposureGains) -> str:
    """What was done, for the log and the report."""
    levels = gains.brightness
    apart = 100 * (math.exp(float(levels.max() - levels.min())) - 1)
    return (
        f"the photographs' exposures differ by up to {apart:.0f} %: all were brought to the middle one "
        "(even_exposures never leaves them)"
    )


def evened_images(images: Tensor, gains: Tensor) -> Tensor:
    """Photographs times their gains, cut at 1.

    A saturated pixel of a photograph that gets darker was anything from the gain to 1: it becomes the middle of these.

    Args:
        images: [V, 3, H, W] in [0, 1].
        gains: [V, 3].
    """
    gain = gains.to(images)[:, :, None, None]
    saturated = ((images - BRIGHT) / (1.0 - BRIGHT)).clamp(min=0.0)  # from 0 to 1
    return (images * (gain + saturated * ((1.0 - gain) / 2).clamp(min=0.0))).clamp(0.0, 1.0)


def recoloured(cloud: PointCloud, images: Tensor, cameras: Cameras) -> PointCloud:
    """The cloud with colours of photographs: the mean of those that see a point, or else of those it falls into.

    Args:
        cloud: N points; one outside of all photographs keeps its colour.
        images: [V, 3, H, W] in [0, 1].
        cameras: V views.
    """
    sees, inside = visible_points(cloud.points, cameras), in_view(cloud.points, cameras)  # [V, N]
    weight = torch.where(sees.any(dim=0), sees, inside)[:, None].to(images)  # [V, 1, N]
    total = weight.sum(dim=0)  # [1, N]
    mean = (weight * _at_points(images, cloud.points, cameras)).sum(dim=0) / total.clamp(min=1)  # [3, N]
    colors = torch.where(total > 0, mean, cloud.colors.T.to(mean)).T.to(cloud.colors)
    return PointCloud(cloud.points, colors, cloud.confidence)


def _at_points(maps: Tensor, points: Tensor, cameras: Cameras) -> Tensor:
    """[V, C, N] of maps [V, C, H, W] where points [N, 3] fall; at the border outside of them."""
    pixels, _ = project(points.to(cameras.intrinsics), cameras)
    grid = (2 * pixels / pixels.new_tensor([cameras.width, cameras.height]) - 1)[:, None].to(maps)  # [V, 1, N, 2]
    return F.grid_sample(maps, grid, padding_mode="border", align_corners=False)[:, :, 0]


def _logarithms(images: Tensor, cameras: Cameras, points: Tensor) -> Tensor:
    """[V, 3, N] of the colours that each view has of each point; NaN where it does not see it, or not well."""
    scale = min(1.0, SHORT_SIDE / min(images.shape[-2:]))
    height, width = (max(1, round(scale * side)) for side in images.shape[-2:])
    small = F.interpolate(images, (height, width), mode="area")
    # a mean that a saturated pixel has a part in says too little
    bad = F.interpolate(
        ((images < DARK) | (images > BRIGHT)).any(dim=1, keepdim=True).float(), (height, width), mode="area"
    )
    coarse = resize_cameras(cameras, height, width)
    good = visible_points(points, cameras)[:, None] & (_at_points(bad, points, coarse) <= 0)  # [V, 1, N]
    return torch.where(good, _at_points(small, points, coarse).clamp(min=1e-6).log().double(), torch.nan)


def _pairs(centers: Tensor, among: Sequence[int]) -> list[tuple[int, int]]:
    """Each view with those of ``among`` that are nearest to it, and with the hubs, which tie groups together."""
    nearest = torch.cdist(centers, centers[list(among)]).argsort(dim=1, stable=True)[:, : NEIGHBOURS + 1].tolist()
    hubs = list(range(0, len(among), -(-len(among) // HUBS)))
    found = {(one, among[at]) for one, row in enumerate(nearest) for at in (*row, *hubs)}
    return sorted({(min(pair), max(pair)) for pair in found if pair[0] != pair[1]})


def _ratios(logarithms: Tensor, pairs: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Medians [V, V, 3] of the logarithms of view i less those of view j, and their standard errors; infinite: none."""
    views = len(logarithms)
    ratios, errors = torch.zeros(views, views, 3).double(), torch.full((views, views, 3), torch.inf).double()
    for one, other in pairs:
        differences = logarithms[one] - logarithms[other]  # [3, N]
        differences = differences[:, ~differences.isnan().any(dim=0)]
        count = differences.shape[1]
        if count < FEWEST:
            continue
        middle = differences.median(dim=1).values
        spread = 1.4826 * (differences - middle[:, None]).abs().median(dim=1).values
        error = (spread.square() * (math.pi / 2) / count + FLOOR**2).sqrt()
        ratios[one, other], ratios[other, one] = middle, -middle
        errors[one, other] = errors[other, one] = error
    return ratios, errors
