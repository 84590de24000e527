"""How a network is guided by what is known of a scene, rendered into the camera of every frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from reconx_pl.errors import ConfigurationError

GuidanceName = Literal["none", "structure", "render", "both"]
RenderSource = Literal["depth", "cloud", "splats"]
RenderMode = Literal["surface", "points"]
RenderChannels = Literal["replace", "append"]
RenderHoles = Literal["black", "masked", "filled", "shared"]
RenderViews = Literal["fused", "pooled"]
GUIDANCES: tuple[GuidanceName, ...] = get_args(GuidanceName)


@dataclass(frozen=True)
class RenderConfig:
    """What is rendered, and how it reaches the U-Net.

    The paper guides by structure tokens alone. ViewCrafter (Yu et al. 2024) feeds the latents of a rendered cloud to
    DynamiCrafter's network in the condition channels that are zero otherwise: ``mode="points"``, ``holes="black"``,
    ``shrink=2`` for its weights. The first and the last latent are the photographs' in every form.

    Args:
        mode: how depth is rendered. "surface": each view's depth as a mesh, cut where it jumps. "points": every pixel
            with depth as a point, as ViewCrafter's weights saw it.
        sources: what is rendered, each into a render of its own: "depth" of the input views, the "cloud" of the clip as
            points, "splats", 3D Gaussians that were fitted to the input views for ``splat_steps`` steps.
        channels: "replace" puts the one render into the condition channels and adds no parameter. "append" gives every
            source further input channels, its latents and its coverage, whose weights start at zero.
        holes: what the network sees where nothing was rendered. "black": black pixels (ViewCrafter). "masked": latents
            of which any pixel is not covered are zero (GEN3C, Ren et al. 2025). "filled": colours of the surroundings.
            "shared": what the other sources have there, in their order, and where none has anything the surroundings.
        residual: the network predicts what is to be added to the filled renders (their mean, of several sources); for
            small networks, whose schedule predicts the clean latent (``schedule.prediction: sample``).
        views: "fused" renders all input views together. "pooled" renders each alone and takes the maximum of the
            latents over the views that cover a latent (GEN3C), zero where none does, whatever ``holes`` says; of
            "depth" alone.
        shrink: renders have 1 / shrink of the rows and columns of the frames, and are enlarged bilinearly.
        radius: of a point, in units of half the shorter side of the image (ViewCrafter 0.01).
        points_per_pixel: so many nearest points count (ViewCrafter 10).
        min_confidence: depth and points below it are not known (DUSt3R's scale, 1 keeps all).
        splat_steps: of the short fit.
        depth_noise: in training: standard deviation of the logarithm of a smooth factor on every depth map.
        point_dropout: in training: share of the depth that is taken away, in patches.

    Raises:
        ConfigurationError: options that contradict each other, or out of range.
    """

    mode: RenderMode = "surface"
    sources: tuple[RenderSource, ...] = ("depth",)
    channels: RenderChannels = "replace"
    holes: RenderHoles = "black"
    residual: bool = False
    views: RenderViews = "fused"
    shrink: int = 1
    radius: float = 0.01
    points_per_pixel: int = 10
    min_confidence: float = 1.0
    splat_steps: int = 100
    depth_noise: float = 0.0
    point_dropout: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "sources", tuple(self.sources))
        choices = {"mode": RenderMode, "channels": RenderChannels, "holes": RenderHoles, "views": RenderViews}
        for name, choice in choices.items():
            if getattr(self, name) not in get_args(choice):
                raise ConfigurationError(
                    f"render.{name} is one of {', '.join(get_args(choice))}, got {getattr(self, name)!r}"
                )
        known = get_args(RenderSource)
        if not self.sources or len(set(self.sources)) < len(self.sources) or set(self.sources) - set(known):
            raise ConfigurationError(f"render.sources names some of {', '.join(known)}, got {list(self.sources)}")
        if self.channels == "replace" and len(self.sources) > 1:
            raise ConfigurationError(
                f"render.channels 'replace' has room for one source, and render.sources names {len(self.sources)}: "
                "name one, or take channels 'append'"
            )
        if self.holes == "shared" and (len(self.sources) < 2 or self.views == "pooled"):
            raise ConfigurationError("render.holes 'shared' takes from another source: name two sources, not pooled")
        if self.views == "pooled" and "depth" not in self.sources:
            raise ConfigurationError("render.views 'pooled' renders the depth of each view: name depth in sources")
        numbers = {name: getattr(self, name) for name in ("shrink", "points_per_pixel", "splat_steps", "radius")}
        if min(self.shrink, self.points_per_pixel, self.splat_steps) < 1 or not self.radius > 0:
            raise ConfigurationError(f"render.shrink, points_per_pixel, splat_steps and radius are positive: {numbers}")
        if not self.min_confidence >= 1:
            raise ConfigurationError(f"render.min_confidence is at least 1, got {self.min_confidence:g}")
        if (self.depth_noise or self.point_dropout) and "depth" not in self.sources:
            raise ConfigurationError("render.depth_noise and point_dropout disturb depth: name depth in sources")
        if not self.depth_noise >= 0 or not 0 <= self.point_dropout < 1:
            raise ConfigurationError(
                f"render.depth_noise is 0 or more and point_dropout lies in [0, 1), got {self.depth_noise:g} and "
                f"{self.point_dropout:g}"
            )

    def extra_channels(self, latent_channels: int, factor: int) -> int:
        """Input channels beyond the noisy and the condition latent: latents and coverage of every source."""
        if self.channels == "replace":
            return 0
        return len(self.sources) * (latent_channels + factor**2)


def check_guidance(
    guidance: GuidanceName | None, structure: bool, render: RenderConfig | None
) -> tuple[GuidanceName, RenderConfig | None]:
    """The guidance of a network, and its render configuration.

    Args:
        guidance: None takes what the other two say.
        structure: whether it has a structure encoder.
        render: None with guidance by rendering takes the default.

    Raises:
        ConfigurationError: they contradict each other.
    """
    if guidance is None:
        found: tuple[GuidanceName, GuidanceName] = ("both", "structure") if structure else ("render", "none")
        return found[0 if render is not None else 1], render
    if guidance not in GUIDANCES:
        raise ConfigurationError(f"guidance is one of {', '.join(GUIDANCES)}, got {guidance!r}")
    if (guidance in ("structure", "both")) != structure:
        raise ConfigurationError(
            f"guidance {guidance!r} and the structure encoder go together: "
            + ("give `structure`, the sizes of the encoder" if not structure else "set `structure` to null")
        )
    if guidance in ("render", "both"):
        return guidance, render or RenderConfig()
    if render is not None:
        raise ConfigurationError(f"guidance {guidance!r} renders nothing: set `render` to null")
    return guidance, None
