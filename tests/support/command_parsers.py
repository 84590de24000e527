"""The parsers of the three command lines, for tests that parse without running anything."""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch.cli import LightningCLI

from reconx_pl.cli.train import PlanCLI, ReconXCLI
from reconx_pl.data.datamodule import ShardDataModule
from reconx_pl.training.module import ReconXModule

ROOT = Path(__file__).resolve().parents[2]


class _ParsedOnly(ReconXCLI):
    """``train.py`` up to the point where it would seed, build the model and run."""

    def _set_seed(self) -> None:
        pass

    def instantiate_classes(self) -> None:
        pass

    def _run_subcommand(self, subcommand: str) -> None:
        pass

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return LightningCLI.subcommands()


@cache
def train_parser() -> ArgumentParser:
    """The parser of ``train.py``."""
    arguments = ["fit", "-c", str(ROOT / "configs" / "stage1.yaml")]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "LightningCLI's args parameter")  # sys.argv is pytest's
        return _ParsedOnly(ReconXModule, ShardDataModule, args=arguments).parser


class _PlanParsedOnly(PlanCLI):
    """``train.py plan`` up to the point where it would plan."""

    def _set_seed(self) -> None:
        pass

    def instantiate_classes(self) -> None:
        pass


@cache
def plan_parser() -> ArgumentParser:
    """The parser of ``train.py plan``."""
    return _PlanParsedOnly(["-c", str(ROOT / "configs" / "stage1.yaml")]).parser


def fit_config(name: str) -> Namespace:
    """What ``train.py fit -c configs/<name>.yaml`` would run."""
    return train_parser().parse_args(["fit", "-c", str(ROOT / "configs" / f"{name}.yaml")]).fit
