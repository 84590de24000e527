"""The command line of ``train.py``: LightningCLI over one module and one data module."""

from __future__ import annotations

import sys
import warnings

from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from reconx_pl.data.datamodule import ShardDataModule
from reconx_pl.errors import ReconXError
from reconx_pl.training.module import ReconXModule


class ReconXCLI(LightningCLI):
    """``fit``, ``validate`` and ``test`` with YAML configs; later ``-c`` files win."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.set_defaults({"trainer.use_distributed_sampler": False})  # the stream splits itself over ranks
        for target in ("model.seed", "data.seed"):
            parser.link_arguments("seed_everything", target, compute_fn=_seed)


def _seed(value: bool | int) -> int:
    return 0 if isinstance(value, bool) else value


def main(args: list[str] | None = None) -> None:
    """Run the command line; errors that this package raises on purpose end without a traceback."""
    # Lightning warns of what is meant to be so: a frozen autoencoder in eval mode, a validation pass of known length
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")
    warnings.filterwarnings("ignore", message=".*`IterableDataset` has `__len__` defined.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated.*")
    try:
        ReconXCLI(
            ReconXModule,
            ShardDataModule,
            args=args,
            seed_everything_default=0,
            # A run that is started again writes into the same folder.
            save_config_kwargs={"overwrite": True},
        )
    except ReconXError as error:
        sys.exit(f"error: {error}")
