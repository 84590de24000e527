"""What a report finds of a reconstruction: the stages that the summary names, and the files that are theirs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from reconx_pl.data.formats.posed import read_posed
from reconx_pl.data.formats.scene import RawScene
from reconx_pl.files.json_files import read_json
from reconx_pl.reconstruction.files import CAMERAS, STAGE_FOLDER
from reconx_pl.reconstruction.fitting import NUMBERS
from reconx_pl.reconstruction.settings import FIT, GENERATION, GEOMETRY, STAGES


@dataclass(frozen=True)
class Content:
    """A reconstruction as its report sees it. Files of stages that this run did not reach are left from another run
    and not shown.

    Args:
        out: the folder.
        summary: what reconstruction.json holds.
    """

    out: Path
    summary: Mapping[str, Any]

    @cached_property
    def stages(self) -> dict[str, Mapping[str, Any]]:
        """Name -> record, in their order."""
        return {record["name"]: record for record in self.summary["stages"]}

    @property
    def missing(self) -> list[str]:
        """Stages that a whole run has and this one has not."""
        wanted = [name for name in STAGES if name != GENERATION or self.summary["view_generator"] is not None]
        return [name for name in wanted if name not in self.stages]

    def kept(self, stage: str, pattern: str) -> list[Path]:
        """Files in the folder of a stage; none where this run has no such stage, or its folder was deleted."""
        if stage not in self.stages:
            return []
        return sorted((self.out / STAGE_FOLDER / self.stages[stage]["folder"]).glob(pattern))

    def result(self, stage: str, name: str) -> Path | None:
        """A file or folder in ``out`` that a stage made; None where this run has no such stage."""
        path = self.out / name
        return path if stage in self.stages and path.exists() else None

    @cached_property
    def scene(self) -> RawScene | None:
        """The photographs with their cameras and points, in the order of visiting; None before there are cameras.

        Raises:
            BadDataError, BadCameraError: cameras.json is damaged.
        """
        path = self.result(GEOMETRY, CAMERAS)
        return None if path is None else read_posed(path)

    @cached_property
    def fit(self) -> Mapping[str, Any] | None:
        """Numbers of the fit: ``gaussians``, ``frames``, ``psnr_of_photographs``, ``loss``."""
        found = self.kept(FIT, NUMBERS)
        return read_json(found[0]) if found else None
