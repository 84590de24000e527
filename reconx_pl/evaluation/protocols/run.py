"""A run of a protocol on disk: what it set out to do, and what came of it, whichever processes did it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from reconx_pl.errors import BadDataError
from reconx_pl.evaluation.protocols.files import parse_protocol
from reconx_pl.evaluation.protocols.protocol import Protocol
from reconx_pl.evaluation.protocols.table import write_table
from reconx_pl.evaluation.records import LAYOUT, Provenance, Record
from reconx_pl.evaluation.report import write_report
from reconx_pl.evaluation.settings import EvaluationConfig
from reconx_pl.evaluation.summary import RunSummary
from reconx_pl.files.json_files import read_json, write_json
from reconx_pl.files.ranks import process_place

PLAN = "protocol.json"


@dataclass(frozen=True)
class ProtocolRun:
    """What a run evaluates, in ``OUT/protocol.json`` from its start on, the same from every process.

    Args:
        protocol: the protocol.
        entries: keys that were asked for, in the protocol's order.
        of: entries of the whole protocol.
        checkpoint: what the user named.
        model: who generates, precisely.
        config: settings of the evaluation.
        estimator: who finds points or poses; None where nobody does.
    """

    protocol: Protocol
    entries: tuple[str, ...]
    of: int
    checkpoint: str
    model: str
    config: EvaluationConfig
    estimator: str | None

    @property
    def named(self) -> dict[str, str]:
        """Name and hash of the protocol, as they stand in every result."""
        return {"name": self.protocol.name, "hash": self.protocol.hash}

    def save(self, out: Path) -> None:
        """Write ``out/protocol.json``."""
        content = {**dataclasses.asdict(self), "protocol_hash": self.protocol.hash, "layout": LAYOUT}
        write_json(out / PLAN, content)

    @staticmethod
    def load(out: Path) -> ProtocolRun:
        """Read ``out/protocol.json``.

        Raises:
            BadDataError: there is none, or it is damaged, or of a version that hashed protocols or kept
                records otherwise.
        """
        file = Path(out) / PLAN
        content = read_json(file)
        if content is None:
            raise BadDataError(f"{file} is missing or damaged; evaluate.py --protocol writes it when it starts")
        try:
            protocol = parse_protocol(content["protocol"], str(file))
            plan = ProtocolRun(
                protocol,
                tuple(content["entries"]),
                content["of"],
                content["checkpoint"],
                content["model"],
                _config(content["config"]),
                content["estimator"],
            )
            hashed, layout = content["protocol_hash"], content.get("layout")
        except (KeyError, TypeError) as error:
            raise BadDataError(f"{file}: not what evaluate.py --protocol writes ({error}); run it again") from error
        if protocol.hash != hashed or layout != LAYOUT:
            raise BadDataError(f"{file}: was written by another version of the package; run the evaluation again")
        return plan

    def gather(self, out: Path) -> Record:
        """Make ``out/results.json``, the table and the report of the results that all processes have left so far."""
        provenance = Provenance(self.config, self.model, self.named, self.estimator)
        results = RunSummary(provenance, {}, Path(out), expected=list(self.entries)).read_back()
        self.write_tables(out, results)
        return results

    def write_tables(self, out: Path, results: Record) -> None:
        """Write ``out/table.md`` and ``out/index.html``."""
        write_table(out, results, self.protocol, self.checkpoint, self.of)
        write_report(out, results, title=f"{self.protocol.name}: {self.protocol.title}")


def process_of_run(environment: Mapping[str, str] | None = None) -> tuple[int, int]:
    """Number of this process and of all: task of a Slurm array times rank of torchrun, as far as there are any.

    Raises:
        ConfigurationError: an array of irregular numbers.
    """
    found = os.environ if environment is None else environment
    task, tasks = process_place(environment={name: value for name, value in found.items() if "SLURM_ARRAY" in name})
    rank, world = process_place(environment={name: found[name] for name in ("RANK", "WORLD_SIZE") if name in found})
    return task * world + rank, tasks * world


def _config(content: dict[str, Any]) -> EvaluationConfig:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(EvaluationConfig, "evaluation")
    return parser.instantiate_classes(parser.parse_object({"evaluation": content})).evaluation
