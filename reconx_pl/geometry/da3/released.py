"""The released networks by name: size, licence, and in words what there is and is not here."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from reconx_pl.errors import BadWeightsError, MissingWeightsError
from reconx_pl.geometry.da3.config import Da3Config


@dataclass(frozen=True)
class ReleasedDa3:
    """A released network.

    Args:
        config: its size.
        licence: of its weights, by the README of its authors' package.
        commercial: False where the licence forbids commercial use.
    """

    config: Da3Config
    licence: str
    commercial: bool


RELEASED = {
    "da3-small": ReleasedDa3(Da3Config.small(), "Apache-2.0", True),
    "da3-base": ReleasedDa3(Da3Config.base(), "Apache-2.0", True),
    "da3-large": ReleasedDa3(Da3Config.large(), "CC BY-NC 4.0", False),
}
#: what a file that is none of these may be
ELSEWHERE = (
    "DA3-GIANT (another MLP, a head for Gaussians), the NESTED models, MONO and METRIC "
    "(one view, another head, a sky) are other networks, which are not implemented"
)


def config_of_folder(path: Path) -> Da3Config:
    """The configuration that the hub's ``config.json`` names.

    Raises:
        MissingWeightsError: there is no such file.
        BadWeightsError: it is no JSON object, or names another network.
    """
    if not path.is_file():
        raise MissingWeightsError(f"{path}: no such file; it belongs beside the weights in the hub's form")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadWeightsError(f"{path}: not readable as JSON ({error}); fetch it again") from error
    name = fields.get("model_name") if isinstance(fields, dict) else None
    if not isinstance(name, str) or name not in RELEASED:
        raise BadWeightsError(f"{path}: model_name is {name!r}, known are {', '.join(RELEASED)}. {ELSEWHERE}")
    return RELEASED[name].config


def config_of_width(width: int, source: str) -> Da3Config:
    """The released configuration whose tokens are so wide.

    Raises:
        BadWeightsError: none is; names ``source``.
    """
    for released in RELEASED.values():
        if released.config.width == width:
            return released.config
    raise BadWeightsError(
        f"{source}: tokens of width {width} are none of {', '.join(RELEASED)}. {ELSEWHERE}; give the Da3Config of a "
        "network of your own"
    )
