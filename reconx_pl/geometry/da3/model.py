"""The network: a backbone for all views together, a head for every view, and cameras in and out."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from reconx_pl.errors import ConfigurationError
from reconx_pl.geometry.da3.backbone import Backbone, Taps
from reconx_pl.geometry.da3.cameras import CameraDecoder, CameraEncoder, decoded_cameras, encoded_cameras
from reconx_pl.geometry.da3.config import PATCH, Da3Config
from reconx_pl.geometry.da3.head import Head, Rays
from reconx_pl.geometry.da3.reference import ReferenceView

Step = Callable[[], None]


class Da3Output(NamedTuple):
    """V views in one world of the network's own, which has no scale."""

    depth: Tensor  # [B, V, H, W] along the optical axis, positive
    confidence: Tensor  # [B, V, H, W], >= 1
    encoding: Tensor  # [B, V, 9], see ``cameras``
    world_to_camera: Tensor  # [B, V, 4, 4]
    intrinsics: Tensor  # [B, V, 3, 3] pixels
    rays: Rays | None  # [B, V, 8h, 8w, ...], where asked for


class DepthAnything3(nn.Module):
    """Images of one size to depth, confidence and cameras.

    The released DA3-SMALL and DA3-BASE are under Apache-2.0, DA3-LARGE is for non-commercial use only.

    Args:
        config: size.
    """

    def __init__(self, config: Da3Config = Da3Config()) -> None:  # noqa: B008 (frozen)
        super().__init__()
        self.config = config
        self.backbone = Backbone(config)
        self.head = Head(config)
        self.camera_decoder = CameraDecoder(config)
        self.camera_encoder = CameraEncoder(config)

    def encode(
        self,
        images: Tensor,
        world_to_camera: Tensor | None = None,
        intrinsics: Tensor | None = None,
        reference: ReferenceView = "saddle_balanced",
        step: Step | None = None,
    ) -> Taps:
        """What the head and the camera decoder read.

        Args:
            images: [B, V, 3, H, W], ImageNet's mean and deviation taken out, sides multiples of 14.
            world_to_camera: [B, V, 4, 4] of all views; None: unknown. As they are: see ``poses.normalised_poses``.
            intrinsics: [B, V, 3, 3] pixels, with the poses. The principal point is not looked at.
            reference: which view is the reference where cameras are unknown.
            step: called after every block.

        Raises:
            ConfigurationError: other shapes, or poses without intrinsics.
        """
        if images.ndim != 5 or images.shape[2] != 3 or any(side % PATCH or not side for side in images.shape[-2:]):
            raise ConfigurationError(
                f"images are [B, V, 3, H, W] with sides that are multiples of {PATCH}, got {tuple(images.shape)}; "
                "see reconx_pl.geometry.da3.preprocess"
            )
        if (world_to_camera is None) != (intrinsics is None):
            raise ConfigurationError("known cameras are poses and intrinsics, both, of every view")
        tokens = None
        if world_to_camera is not None and intrinsics is not None:
            views = tuple(images.shape[:2])
            if world_to_camera.shape != (*views, 4, 4) or intrinsics.shape != (*views, 3, 3):
                raise ConfigurationError(
                    f"cameras {tuple(world_to_camera.shape)} and {tuple(intrinsics.shape)} do not go with images "
                    f"{tuple(images.shape)}"
                )
            with torch.autocast(images.device.type, enabled=False):
                encoding = encoded_cameras(world_to_camera, intrinsics, *images.shape[-2:])
                tokens = self.camera_encoder(encoding.to(self.backbone.camera_token))
        return self.backbone(images, tokens, reference, step)

    def decode(
        self, taps: Taps, views_at_once: int = 8, with_rays: bool = False, step: Step | None = None
    ) -> Da3Output:
        """Depth, confidence, cameras and, where wanted, rays; in the number type of the weights under autocast too.

        Args:
            taps: of ``encode``.
            views_at_once: that the head sees in one piece; changes memory and not results.
            with_rays: also compute the rays.
            step: called after every piece.
        """
        batch, views = taps.tokens[0].shape[:2]
        height, width = (PATCH * side for side in taps.grid)
        pieces = []
        with torch.autocast(taps.tokens[0].device.type, enabled=False):
            kind = self.backbone.camera_token.dtype
            for start in range(0, batch * views, views_at_once):
                chunk = slice(start, start + views_at_once)
                tokens = [self.backbone.for_head(tap.flatten(0, 1)[chunk].to(kind)) for tap in taps.tokens]
                pieces.append(self.head(tokens, taps.grid, with_rays))
                if step is not None:
                    step()
            encoding = self.camera_decoder(taps.tokens[-1][:, :, 0].to(kind))

            def whole(parts: list[Tensor]) -> Tensor:
                return torch.cat(parts).unflatten(0, (batch, views))

            rays = [piece[2] for piece in pieces if piece[2] is not None]
            return Da3Output(
                whole([piece[0] for piece in pieces]),
                whole([piece[1] for piece in pieces]),
                encoding,
                *decoded_cameras(encoding, height, width),
                Rays(*(whole(list(part)) for part in zip(*rays, strict=True))) if rays else None,
            )

    def forward(
        self,
        images: Tensor,
        world_to_camera: Tensor | None = None,
        intrinsics: Tensor | None = None,
        reference: ReferenceView = "saddle_balanced",
        with_rays: bool = False,
    ) -> Da3Output:
        """``encode``, then ``decode``."""
        return self.decode(self.encode(images, world_to_camera, intrinsics, reference), with_rays=with_rays)
