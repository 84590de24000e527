"""What guidance reads of a clip for training, beside frames and points: depth, colours, renders of a short fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from reconx_pl.data.shards.member_arrays import REMEDY, array_bytes, float_array, place_of, plain_array
from reconx_pl.data.shards.schema import CLOUD_CONFIDENCE, CLOUD_RGB, CONFIDENCE, DEPTH, ClipHeader
from reconx_pl.errors import BadDataError


def decode_depth(
    members: Mapping[str, Any], source: str, header: ClipHeader, min_confidence: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Depth and confidence [2, H, W] float32 of the first and the last frame, see ``Clip``.

    Depth that comes without confidence has an infinite one: nothing speaks against it.

    Raises:
        BadDataError: the clip has none, or none of ``min_confidence``.
    """
    where = place_of(source, header.key)
    if DEPTH not in members:
        raise BadDataError(
            f"{where}: has no depth, and guidance by rendering asks for it: pack a data set with depth, let `reconx "
            "cache --estimator` make some, or train with guidance 'structure' or render.sources [cloud]"
        )
    shape = (2, header.cameras.height, header.cameras.width)
    depth = float_array(members, DEPTH, where, shape, far=True)
    confidence = torch.full_like(depth, torch.inf)
    if CONFIDENCE in members:
        confidence = float_array(members, CONFIDENCE, where, shape)
    if not bool(((depth > 0) & (confidence >= min_confidence)).any()):
        raise BadDataError(
            f"{where}: no pixel of its depth has a confidence of {min_confidence:g}; lower render.min_confidence, or "
            "pack it with other depth"
        )
    return depth, confidence


def decode_colors(members: Mapping[str, Any], source: str, key: str, count: int) -> Tensor:
    """Colours [N, 3] float32 in [0, 1] of the first ``count`` points of the cloud.

    Raises:
        BadDataError: there are none, or fewer.
    """
    colors = plain_array(members, CLOUD_RGB, place_of(source, key), "uint8", (None, 3))[:count]
    return _as_many(colors, count, "colours", source, key).float() / 255.0


def decode_point_confidence(
    members: Mapping[str, Any], source: str, key: str, count: int, min_confidence: float = 1.0
) -> Tensor:
    """Confidence [N] float32 of the first ``count`` points of the cloud.

    Raises:
        BadDataError: there is none, or of fewer points, or none of ``min_confidence``.
    """
    confidence = float_array(members, CLOUD_CONFIDENCE, place_of(source, key), (None,))[:count]
    confidence = _as_many(confidence, count, "confidences", source, key)
    if not bool((confidence >= min_confidence).any()):
        raise BadDataError(
            f"{place_of(source, key)}: none of the first {count} points has a confidence of {min_confidence:g}; lower "
            "render.min_confidence, or pack it with another cloud"
        )
    return confidence


def _as_many(values: Tensor, count: int, what: str, source: str, key: str) -> Tensor:
    if len(values) < count:
        raise BadDataError(f"{place_of(source, key)}: {len(values)} {what} do not go with {count} points; {REMEDY}")
    return values


def decode_splats(members: Mapping[str, Any], name: str, source: str, header: ClipHeader) -> Tensor:
    """Colour and coverage [T, 4, H, W] uint8 of a short fit, see ``caches``.

    Raises:
        BadDataError: it is missing, or not such an array.
    """
    where = place_of(source, header.key)
    if name not in members:
        raise BadDataError(f"{where}: member .{name} is missing: make it with `reconx cache` and this run's config")
    return plain_array(members, name, where, "uint8", (header.frames, 4, header.cameras.height, header.cameras.width))


def encode_splats(values: Tensor, where: str) -> bytes:
    """The member of ``decode_splats``, from [T, 4, H, W] uint8."""
    return array_bytes(values, tuple(values.shape), where)
