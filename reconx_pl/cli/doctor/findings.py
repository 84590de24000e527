"""One line of what the doctor found, and what it is needed for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

Status = Literal["ok", "warning", "missing"]
Use = Literal["basics", "train", "evaluate", "reconstruct", "all"]
USES: tuple[Use, ...] = get_args(Use)
# How much a use needs something: without it the use fails, or is worse.
Need = Literal["required", "useful"]


@dataclass(frozen=True)
class Finding:
    """One line.

    Args:
        topic: what it belongs to.
        name: what was looked at.
        status: ``missing`` where the chosen use fails for it.
        text: what was found.
        remedy: the command, or the step, that mends it; only and always where it is not ok.
    """

    topic: str
    name: str
    status: Status
    text: str
    remedy: str = ""

    def __post_init__(self) -> None:
        if (self.status == "ok") == bool(self.remedy):
            raise ValueError(f"{self.name} is {self.status}: a remedy stands where something is not ok, and only there")


def lacking(need: Need) -> Status:
    """Status of something that is not there."""
    return "missing" if need == "required" else "warning"


def need_of(use: Use, needs: Mapping[Use, Need]) -> Need | None:
    """How much a use needs something; None where it does not.

    Args:
        use: the chosen one; ``all`` needs whatever any of them does, and every one needs what ``basics`` does.
        needs: of the uses that need it.
    """
    asked = USES if use == "all" else ("basics", use)
    found = [needs[one] for one in asked if one in needs]
    return None if not found else "required" if "required" in found else "useful"
