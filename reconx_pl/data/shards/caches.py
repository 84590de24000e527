"""Shard members that stand in for the frozen encoders, named after the weights that made them.

``moments-<hash>.npy`` is [T, 2 C, h, w] float16, mean and log variance of the autoencoder's posterior of every frame:
each visit of a clip draws its own sample, as if the encoder had run. ``clip-<hash>.npy`` is [M, D] float16, the tokens
that the frozen image encoder gives for the first frame. The hash is the beginning of the encoder's fingerprint,
so that a reader that looks for other weights does not find them.

``splats-<hash>.npy`` is [T, 4, H, W] uint8, colour and coverage of a short fit of the first and the last frame,
rendered into the cameras of all: a source of guidance by rendering. Its hash is that of the fit's settings.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from reconx_pl.data.shards.manifest import Manifest
from reconx_pl.errors import ConfigurationError

Kind = Literal["moments", "clip", "splats"]
CACHE_NAME = re.compile(r"(moments|clip|splats)-[0-9a-f]{12}\.npy")
CACHES = "caches"  # setting of a manifest: names of the members that every clip has


def cache_name(kind: Kind, fingerprint: str) -> str:
    """The member that holds what weights of this fingerprint made."""
    return f"{kind}-{fingerprint[:12]}.npy"


def is_cache(member: str) -> bool:
    return CACHE_NAME.fullmatch(member) is not None


@dataclass(frozen=True)
class CachedInputs:
    """What a network reads instead of running its frozen encoders.

    Args:
        moments: member with the posterior's moments; None for an autoencoder that has none.
        clip: member with the first frame's tokens; None for image tokens that are trained as a whole.

    Raises:
        ConfigurationError: neither.
    """

    moments: str | None = None
    clip: str | None = None

    def __post_init__(self) -> None:
        if not self.names:
            raise ConfigurationError(
                "this network has no frozen autoencoder or image encoder: there is nothing to cache; "
                "set data.cached to false"
            )

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name in (self.moments, self.clip) if name is not None)

    def frames(self, count: int) -> range:
        """Which of a clip's ``count`` frames still have to be decoded."""
        if self.moments is None:
            return range(count)
        return range(1 if self.clip is None else 0)

    def require(self, manifest: Manifest) -> None:
        """Check that a folder of shards has these members.

        Raises:
            ConfigurationError: it has others or none; names the folder, both and the command.
        """
        found = manifest.settings.get(CACHES, ())
        if missing := [name for name in self.names if name not in found]:
            raise wrong_caches(str(manifest.folder), missing, found)


@dataclass(frozen=True)
class GuidanceInputs:
    """What guidance reads of a clip, beside frames and points.

    Args:
        views: the first and the last frame, where caches stand in for frames.
        depth: depth and confidence of the first and the last frame.
        colors: those of the cloud's points.
        point_confidence: that of the cloud's points.
        splats: member with the renders of a short fit; None reads none.
        min_confidence: a clip with nothing of at least this confidence is one that cannot be read.
    """

    views: bool = False
    depth: bool = False
    colors: bool = False
    point_confidence: bool = False
    splats: str | None = None
    min_confidence: float = 1.0

    def require(self, manifest: Manifest) -> None:
        """Check that a folder of shards has the member.

        Raises:
            ConfigurationError: it has not; names the folder and the command.
        """
        found = manifest.settings.get(CACHES, ())
        if self.splats is not None and self.splats not in found:
            raise ConfigurationError(
                f"{manifest.folder}: has {', '.join(sorted(found)) or 'no caches'}, and guidance by renders of a short "
                f"fit needs {self.splats}. Make it with `reconx cache {manifest.folder} OUT --config <this run's "
                "config>` and train on OUT, or leave splats out of render.sources"
            )


def wrong_caches(folder: str, wanted: Iterable[str], found: Iterable[str]) -> ConfigurationError:
    """The error for shards whose caches are not those of the network."""
    has = ", ".join(sorted(found)) or "no caches"
    return ConfigurationError(
        f"{folder}: has {has}, the network needs {', '.join(wanted)} (the names hold a hash of the weights). Make them "
        f"with `reconx cache {folder} OUT --config <this run's config>` and train on OUT, or set data.cached to false"
    )
