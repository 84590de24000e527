"""The tensors that a fit optimises, and their optimiser."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from reconx_pl.splatting.exposure import Exposures
from reconx_pl.splatting.fit_config import FitConfig
from reconx_pl.splatting.pose_refinement import RefinedPoses
from reconx_pl.types import Cameras, Gaussians

_GAP = 10.0  # (ours) between the farthest surface and points at infinity; ``geometry.rendering`` has them at 50


class SceneParameters(nn.Module):
    """The Gaussians. One tensor a degree of the harmonics, so that Adam leaves alone what is not yet in use."""

    def __init__(self, start: Gaussians, config: FitConfig) -> None:
        super().__init__()
        self.means = nn.Parameter(start.means)
        self.quaternions = nn.Parameter(start.quaternions)
        self.log_scales = nn.Parameter(start.log_scales)
        self.opacity_logits = nn.Parameter(start.opacity_logits)
        bands = start.sh.split([2 * degree + 1 for degree in range(config.sh_degree + 1)], dim=1)
        self.sh = nn.ParameterList(nn.Parameter(band.contiguous()) for band in bands)
        self.register_buffer("background", torch.tensor(config.background))

    def gaussians(self, degree: int) -> Gaussians:
        """The scene up to a degree of the harmonics; gradients reach the parameters."""
        bands = list(self.sh)[: degree + 1]
        return Gaussians(
            self.means,
            self.quaternions,
            self.log_scales,
            self.opacity_logits,
            bands[0] if degree == 0 else torch.cat(bands, dim=1),
            self.get_buffer("background"),
        )

    def detached(self) -> Gaussians:
        """A copy without gradients."""
        values = self.gaussians(len(self.sh) - 1)
        return Gaussians(**{name: tensor.detach().clone() for name, tensor in vars(values).items()})


class FitOptimizer:
    """Adam over Gaussians, poses and exposures, each with its rate and its schedule.

    Args:
        scene: the Gaussians.
        config: rates, and the number of steps that the schedules run over.
        extent: world units that the rate of the means is measured in (``scene_extent``).
        poses: refined poses, if any.
        exposures: colour transforms, if any.
    """

    def __init__(
        self,
        scene: SceneParameters,
        config: FitConfig,
        extent: float,
        poses: RefinedPoses | None = None,
        exposures: Exposures | None = None,
    ) -> None:
        rates = config.rates
        self.config = config
        self.exposures = exposures
        self.means: dict[str, Any] = {"params": [scene.means], "lr": rates.means * extent}
        self.first_means_rate = rates.means * extent
        self.poses: dict[str, Any] = {"params": [] if poses is None else list(poses.twists.values()), "lr": 1.0}
        self.exposure: dict[str, Any] = {
            "params": [] if exposures is None else list(exposures.differences.values()),
            "lr": 0.0,
        }
        groups = [
            self.means,
            {"params": [scene.quaternions], "lr": rates.quaternions},
            {"params": [scene.log_scales], "lr": rates.log_scales},
            {"params": [scene.opacity_logits], "lr": rates.opacity_logits},
            {"params": [scene.sh[0]], "lr": rates.sh_base},
            {"params": list(scene.sh)[1:], "lr": rates.sh_higher},
            self.poses,
            self.exposure,
        ]
        self.adam = torch.optim.Adam([group for group in groups if group["params"]], eps=1e-15, fused=True)

    def step(self, loss: Tensor, step: int) -> None:
        """Gradients of the loss, and one step of Adam with the rates of this step."""
        progress = step / self.config.steps
        self.means["lr"] = self.first_means_rate * self.config.rates.means_final**progress
        if self.config.poses is not None:
            self.poses["lr"] = self.config.poses.factor(progress)
        if self.config.exposure is not None:
            self.exposure["lr"] = self.config.exposure.rate * self.config.exposure.factor(progress)
        self.adam.zero_grad(set_to_none=True)
        loss.backward()
        if self.poses["lr"] == 0.0:
            for twist in self.poses["params"]:
                twist.grad = None  # what a scene without shape asks for shall not enter Adam's moments
        self.adam.step()
        if self.exposures is not None:
            self.exposures.hold_mean()


def scene_extent(cameras: Cameras, means: Tensor) -> float:
    """World units that the learning rate of the means is measured in: 1.1 times the radius of the cameras (3DGS), but
    at least a tenth of the median distance of the points, since a clip's cameras may hardly move. Points at infinity
    (sky, however much of it the photographs show) do not count."""
    centers = cameras.centers
    middle = centers.mean(dim=0)
    radius = 1.1 * float((centers - middle).norm(dim=1).max())
    return max(radius, 0.1 * float(_without_far((means - middle).norm(dim=1)).median()))


def _without_far(distance: Tensor) -> Tensor:
    """Distances [N] without those that lie behind a gap over which the distance grows ``_GAP``-fold.

    A lone point at the cameras makes such a gap, too: a tenth of the points have to lie before it.
    """
    ordered = distance.sort().values
    first = max(1, len(ordered) // 10)
    gaps = (ordered[first:] > _GAP * ordered[first - 1 : -1]).nonzero()
    return distance if len(gaps) == 0 else ordered[: first + int(gaps[0])]
