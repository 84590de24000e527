"""Weights in and out: names of the base model, strict loading, our own folder, releases."""

from reconx_pl.diffusion.weights.load import Queries, load_network, load_state, read_network
from reconx_pl.diffusion.weights.names import (
    OFFICIAL_PREFIX,
    STRUCTURE_PARAMETERS,
    from_official_name,
    load_official_unet,
    load_unet_weights,
    to_official_name,
    to_official_unet,
)

__all__ = [
    "OFFICIAL_PREFIX",
    "STRUCTURE_PARAMETERS",
    "Queries",
    "from_official_name",
    "load_network",
    "load_official_unet",
    "load_state",
    "load_unet_weights",
    "read_network",
    "to_official_name",
    "to_official_unet",
]
