"""What the processes of an evaluation know, and the summary that they make of it together."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.distributed as dist

from reconx_pl.evaluation.records import (
    ERROR,
    SUMMARY,
    Provenance,
    Record,
    fill,
    finished_record,
    make_metrics,
    means,
    scene_folder,
    summary,
)
from reconx_pl.files.json_files import read_json, write_json


@dataclass
class RunSummary:
    """What one process knows of an evaluation so far, and the summary of it."""

    provenance: Provenance
    absent: dict[str, str]
    out: Path
    records: list[Record] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)  # keys, also of the scenes of other ranks
    failed: dict[str, str] = field(default_factory=dict)

    def write(self, final: bool) -> Record:
        """Write the summary of what is here; it is not complete before the evaluation is at its end."""
        content = self._summary(self._means())
        content["complete"] = content["complete"] and final
        write_json(self.out / SUMMARY, content)
        return content

    def gather(self, rank: int) -> Record:
        """The summary over the process group; rank 0 writes it."""
        nccl = dist.get_backend() == "nccl"  # gathers on its own device only
        table = self._means(torch.device("cuda", torch.cuda.current_device()) if nccl else None)
        parts: list[RunSummary] = [self] * dist.get_world_size()
        dist.all_gather_object(parts, self)
        whole = replace(
            self,
            records=[record for part in parts for record in part.records],
            failed={key: error for part in parts for key, error in part.failed.items()},
            absent={name: why for part in parts for name, why in part.absent.items()},
        )
        content = whole._summary(table)
        if rank == 0:
            write_json(self.out / SUMMARY, content)
        return content

    def read_back(self) -> Record:
        """The summary of what all processes left in the shared folder so far."""
        unread = {place: error for place, error in self.failed.items() if place not in self.expected}
        while True:
            found = self._found()
            content = replace(self, records=found[0], failed=found[1] | unread).write(final=True)
            # Another process may have finished, and written its summary, between our reading and our writing.
            if self._found() == found:
                return content

    def _found(self) -> tuple[list[Record], dict[str, str]]:
        records, failed = [], {}
        for key in self.expected:
            folder = scene_folder(self.out, key)
            record = finished_record(folder, self.provenance)
            error = read_json(folder / ERROR)
            if record is not None:
                records.append(record)
            elif error is not None and self.provenance.of(error):
                failed[key] = error["error"]
        return records, failed

    def _means(self, device: torch.device | None = None) -> dict[str, dict[str, dict[str, float]]]:
        """See ``records.means``: every rank of a process group must call it."""
        metrics = make_metrics(self.provenance.config.metrics)
        for record in self.records:
            fill(metrics, record)
        for metric in metrics.values() if device is not None else ():
            metric.to(device)
        return means(metrics)

    def _summary(self, table: dict[str, dict[str, dict[str, float]]]) -> Record:
        return summary(self.records, table, self.expected, self.failed, self.provenance, self.absent)
