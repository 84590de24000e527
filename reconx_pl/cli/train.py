"""The command line of ``reconx train`` and ``train.py``: LightningCLI over one module and one data module."""

from __future__ import annotations

import logging
import sys
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from reconx_pl.cli.arguments import ArgumentParser, renamed_arguments
from reconx_pl.cli.config_option import ConfigOption
from reconx_pl.data.datamodule import ShardDataModule
from reconx_pl.devices import bfloat16_is_native
from reconx_pl.errors import MissingWeightsError, ReconXError
from reconx_pl.training.callbacks.preemption import NOTE
from reconx_pl.training.callbacks.saved_config import RunConfig
from reconx_pl.training.checkpointing.resume import EitherCheckpointIO, checkpoint_folder, newest_checkpoint
from reconx_pl.training.module import ReconXModule
from reconx_pl.training.plan.plan import PlanOptions, make_plan
from reconx_pl.training.plan.plan_text import plan_text
from reconx_pl.training.sharding import ShardedStrategy

log = logging.getLogger(__name__)


class RunParser(ArgumentParser, LightningArgumentParser):
    """Lightning's parser, which takes names of earlier versions in ``-c`` files."""


class ReconXCLI(LightningCLI):
    """``fit``, ``validate``, ``test`` and ``predict`` with YAML configs; later ``-c`` files win.

    ``ckpt_path: last`` is the newest complete checkpoint in the folder of the run's ``ModelCheckpoint``. Where there is
    none ``fit`` starts anew, and says so; the others refuse.
    """

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        parser = RunParser(**{"dump_header": [f"lightning.pytorch=={lightning.__version__}"], **kwargs})
        parser.add_argument("-c", "--config", action=ConfigOption, help="YAML file with any of these options")
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(renamed_arguments(sys.argv[1:] if args is None else args))

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.set_defaults({"trainer.use_distributed_sampler": False})  # the stream splits itself over ranks
        for target in ("model.seed", "data.seed"):
            parser.link_arguments("seed_everything", target, compute_fn=_seed)

    def before_instantiate_classes(self) -> None:
        callbacks = self.config.fit.trainer.callbacks if self.subcommand == "fit" else None
        # loading weights takes minutes, and a signal meanwhile would end the process
        if any(str(callback.class_path).endswith(".PreemptionCallback") for callback in callbacks or ()):
            NOTE.listen()

    def before_fit(self) -> None:
        self._find_checkpoint("fit")
        if emulates_bfloat16(self.trainer):
            log.warning(
                "this processor has no bfloat16 arithmetic: it emulates trainer.precision %s, many times slower than "
                "float32; take --trainer.precision 32-true",
                self.trainer.precision,
            )

    def before_validate(self) -> None:
        self._find_checkpoint("validate")

    def before_test(self) -> None:
        self._find_checkpoint("test")

    def before_predict(self) -> None:
        self._find_checkpoint("predict")

    def _find_checkpoint(self, subcommand: str) -> None:
        if not isinstance(self.trainer.strategy, ShardedStrategy):
            self.trainer.strategy.checkpoint_io = EitherCheckpointIO()
        chosen = self.config_init[subcommand]
        if chosen.ckpt_path == "last":
            found = self._newest(subcommand)
            chosen.ckpt_path = None if found is None else str(found)
        if chosen.ckpt_path not in (None, "best", "hpc", "registry"):
            # known from now on: without it ``setup`` would first load the weights of model.init_from
            self.trainer.ckpt_path, chosen.ckpt_path = chosen.ckpt_path, None

    def _newest(self, subcommand: str) -> Path | None:
        callbacks = [c for c in self.trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
        given = [Path(str(callback.dirpath)) for callback in callbacks if callback.dirpath]
        folder = given[0] if given else checkpoint_folder(self.trainer)
        found = newest_checkpoint(folder)
        where = f"in {folder}"
        if found is None and subcommand != "fit":
            raise MissingWeightsError(
                f"no complete checkpoint {where}: give --ckpt_path, or --ckpt_path null for model.init_from"
            )
        if found is None:
            log.warning("no complete checkpoint %s: the run starts anew, from step 0", where)
        return found


def emulates_bfloat16(trainer: Trainer) -> bool:
    """Whether a run on the processor asks for arithmetic that it does not have."""
    on_cpu = trainer.strategy.root_device.type == "cpu"
    return on_cpu and "bf16" in str(trainer.precision) and not bfloat16_is_native()


class PlanCLI(ReconXCLI):
    """``plan``: parses what ``fit`` parses, builds nothing, and keeps the plan as ``plan``."""

    def __init__(self, args: list[str], prog: str = "train.py plan") -> None:
        super().__init__(
            ReconXModule,
            ShardDataModule,
            args=args,
            run=False,
            seed_everything_default=0,
            parser_kwargs={"prog": prog, "description": "What fit would do, without doing it (docs/training.md)."},
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_class_arguments(PlanOptions)
        for name in ("ckpt_path", "weights_only"):  # of fit, whose files are read here
            parser.add_argument(f"--{name}", type=Any, default=None, help="as for fit; a plan does not use it")

    def instantiate_classes(self) -> None:
        config = self.config.as_dict()
        options = PlanOptions(**{item.name: config[item.name] for item in fields(PlanOptions)})
        self.plan = make_plan(config, options)


def _seed(value: bool | int) -> int:
    return 0 if isinstance(value, bool) else value


def main(args: list[str] | None = None, prog: str = "train.py") -> None:
    """Run the command line; errors that this package raises on purpose end without a traceback.

    Args:
        args: None takes those of the process.
        prog: name of the command in its help.
    """
    # Lightning warns of what is meant to be so: a frozen autoencoder in eval mode, a validation pass of known length
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")
    warnings.filterwarnings("ignore", message=".*`IterableDataset` has `__len__` defined.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated.*")
    # nothing works in place on what a stage of the sharded U-Net returns
    warnings.filterwarnings("ignore", message=".*FSDP2-wrapped module .* returned a view tensor.*")
    given = sys.argv[1:] if args is None else args
    try:
        if given[:1] == ["plan"]:
            sys.stdout.write(plan_text(PlanCLI(given[1:], f"{prog} plan").plan) + "\n")
            return
        ReconXCLI(
            ReconXModule,
            ShardDataModule,
            args=given,
            seed_everything_default=0,
            save_config_callback=RunConfig,
            # a run that is started again writes into the same folder; RunConfig sees to what is there
            save_config_kwargs={"overwrite": True},
            parser_kwargs={
                "prog": prog,
                "description": "Beside these there is plan: what fit would do, without doing it.",
            },
        )
    except ReconXError as error:
        sys.exit(f"error: {error}")
    finally:
        if not NOTE.answered:
            NOTE.restore()
