"""One pass of the network over the images of a scene, within the memory that there is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from reconx_pl.devices import free_memory
from reconx_pl.errors import BadSceneError, ConfigurationError
from reconx_pl.geometry.da3.config import PATCH, Da3Config
from reconx_pl.geometry.da3.head import Rays
from reconx_pl.geometry.da3.model import Da3Output, DepthAnything3
from reconx_pl.geometry.da3.preprocess import normalised_images
from reconx_pl.geometry.da3.reference import ReferenceView
from reconx_pl.types import Progress

GIB = 2**30
_AT_ONCE = 8  # views that the head sees in one piece, at most; more gain nothing


@dataclass(frozen=True)
class Da3Inference:
    """How the network is run.

    Args:
        memory_gib: for activations, GiB; None takes what is free on the device. The head works in pieces that fit; what
            the backbone needs for all views together has to fit too.
        bf16: backbone in bfloat16 (autocast); head and cameras stay in float32.
        reference: which view is the reference where cameras are unknown and there are three views or more.

    Raises:
        ConfigurationError: memory that is not positive.
    """

    memory_gib: float | None = None
    bf16: bool = False
    reference: ReferenceView = "saddle_balanced"

    def __post_init__(self) -> None:
        if self.memory_gib is not None and self.memory_gib <= 0:
            raise ConfigurationError(f"memory_gib must be positive, got {self.memory_gib}")


def predict(
    model: DepthAnything3,
    images: Tensor,
    world_to_camera: Tensor | None = None,
    intrinsics: Tensor | None = None,
    options: Da3Inference = Da3Inference(),
    progress: Progress | None = None,
    with_rays: bool = False,
) -> Da3Output:
    """What the model says of V images, all in one world.

    Args:
        model: on the device that computes; in evaluation mode.
        images: [V, 3, H, W] in [0, 1], sides multiples of 14; see ``prepare_image``.
        world_to_camera: [V, 4, 4] known poses of all views, normalised (``normalised_poses``); None: unknown.
        intrinsics: [V, 3, 3] pixels, with them.
        options: memory and precision.
        progress: counts blocks, then pieces of the head.
        with_rays: also compute the rays.

    Returns:
        float32 on the CPU, without the batch axis: [V, ...].

    Raises:
        BadSceneError: more views than the memory holds, with numbers and remedies.
        ConfigurationError: images or cameras of a shape that the network does not take.
    """
    device = next(model.parameters()).device
    views, _, height, width = images.shape
    pieces = _views_at_once(model.config, views, height, width, options, device, with_rays)
    total, done = model.config.depth + -(-views // pieces), 0

    def step() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress("network", done, total)

    def batch(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[None].float().to(device)

    with torch.no_grad():
        prepared = normalised_images(images.float().to(device))[None]
        with torch.autocast(device.type, torch.bfloat16, enabled=options.bf16):
            taps = model.encode(prepared, batch(world_to_camera), batch(intrinsics), options.reference, step)
        output = model.decode(taps, pieces, with_rays, step)

    def here(tensor: Tensor) -> Tensor:
        return tensor[0].float().cpu()

    return Da3Output(
        here(output.depth),
        here(output.confidence),
        here(output.encoding),
        here(output.world_to_camera),
        here(output.intrinsics),
        None if output.rays is None else Rays(*map(here, output.rays)),
    )


def _views_at_once(
    config: Da3Config,
    views: int,
    height: int,
    width: int,
    options: Da3Inference,
    device: torch.device,
    with_rays: bool,
) -> int:
    """Views in a piece of the head.

    Raises:
        BadSceneError: the views do not fit.
    """
    free = free_memory(device) if options.memory_gib is None else int(options.memory_gib * GIB)
    if free is None:
        return _AT_ONCE
    each, head = backbone_bytes(config, height, width), head_bytes(config, height, width)
    head *= 2 if with_rays else 1
    if views * each + head > free:
        most = max(0, (free - head) // each)
        there = "are free" if options.memory_gib is None else "memory_gib allows"
        raise BadSceneError(
            f"{views} views of {height} x {width} pixels in one pass need about {(views * each + head) / GIB:.1f} GiB, "
            f"and {free / GIB:.1f} GiB {there}, enough for {most}. Take fewer views, or a smaller preprocessing.size"
        )
    return min(_AT_ONCE, int((free - views * each) // head))


def backbone_bytes(config: Da3Config, height: int, width: int) -> int:
    """What a view adds to the peak of the backbone, in float32: four taps of 2C, and what a block holds at once.

    The last number was measured: 24 views of 280 x 378 pixels through DA3-SMALL took 30 C a token, not 32.
    """
    tokens = 1 + height * width // PATCH**2
    return 4 * tokens * config.width * (8 + 2 * config.mlp_ratio + 16)


def head_bytes(config: Da3Config, height: int, width: int) -> int:
    """An estimate of the peak of one view's head: the finest fusion, and the maps of full size before the end."""
    fusion = 64 * height * width // PATCH**2 * config.head_width * 4
    return 4 * (fusion + height * width * 2 * config.head_width)
