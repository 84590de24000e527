"""Fully sharded training (FSDP2): every rank holds a part of each trained weight, its gradient and its moments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from reconx_pl.diffusion.model import ReconXDiffusion
from reconx_pl.diffusion.unet import Stage
from reconx_pl.errors import ConfigurationError
from reconx_pl.training.checkpointing.sharded_checkpoint import restore_file, restore_folder, write_folder
from reconx_pl.training.stages import frozen_names


def sharded_units(network: ReconXDiffusion) -> list[nn.Module]:
    """What is gathered together, but for the rest of the network."""
    units: list[nn.Module] = [module for module in network.unet.modules() if isinstance(module, Stage)]
    return units + [module for module in (network.structure_encoder, network.image_tokens) if module is not None]


def shard_network(network: ReconXDiffusion, mesh: DeviceMesh, policy: MixedPrecisionPolicy | None = None) -> None:
    """Shard the network over a one-dimensional mesh, in place; weights must be loaded, and stage applied, before.

    Units that are gathered together: each ``Stage`` of the U-Net, the structure encoder, the image encoder, and the
    rest (embeddings, output layer, text tables). A stage (a residual block and its two transformers) is larger than a
    single block, so that full size takes some 30 gathers a pass instead of 60, it is still a small share of the whole,
    and activation checkpointing of its blocks happens inside it, where recomputing needs no further gather.

    Pretrained frozen encoders are left whole on every rank: they have neither gradients nor moments.

    Only ``forward``, ``loss`` and ``condition_sets`` may be called on a sharded network, by all ranks together.
    """
    policy = policy or MixedPrecisionPolicy()
    frozen_encoders = frozen_names(network)
    whole = {parameter for name, parameter in network.named_parameters() if name in frozen_encoders}
    # the root too gives its weights back after a forward pass: validation, too, must leave it sharded
    for module in (*sharded_units(network), network):
        fully_shard(module, mesh=mesh, mp_policy=policy, ignored_params=whole, reshard_after_forward=True)
    for module, methods in ((network, ("loss", "condition_sets")), (network.image_tokens, ("null", "project"))):
        for method in methods:
            if hasattr(module, method):
                register_fsdp_forward_method(module, method)


def reshard(module: nn.Module) -> None:
    """Give back what an interrupted forward pass left gathered; nothing to do for a module that is not sharded."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def is_sharded(module: nn.Module) -> bool:
    """Whether ``shard_network`` has been applied."""
    return any(isinstance(part, FSDPModule) for part in module.modules())


def require_sharded(module: nn.Module) -> None:
    """Check that no trained parameter was left out of the sharding: it would drift apart between ranks in silence.

    Raises:
        ConfigurationError: names those that were.
    """
    left = [name for name, p in module.named_parameters() if p.requires_grad and not isinstance(p, DTensor)]
    if left:
        more = f" and {len(left) - 8} more" if len(left) > 8 else ""
        raise ConfigurationError(
            f"{len(left)} trained parameters are not sharded: {', '.join(left[:8])}{more}. Their gradients would not "
            "be averaged over ranks; put them into a module that reconx_pl.training.sharding.shard_network reaches"
        )


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all processes, on GPUs and on processors, one process included; checkpoints are folders.

    The module shards itself in ``configure_model`` with ``mesh`` and ``policy``. With precision ``bf16-mixed`` weights
    travel and are used in bfloat16, gradients are averaged in float32, and optimizer and checkpoint hold float32.

    Args:
        process_group_backend: None takes nccl for GPUs and gloo for processors.
    """

    def __init__(self, process_group_backend: str | None = None) -> None:
        super().__init__(process_group_backend=process_group_backend)

    @property
    def mesh(self) -> DeviceMesh:
        """All processes in one row."""
        return self.device_mesh["data_parallel"]

    @property
    def policy(self) -> MixedPrecisionPolicy:
        precision = self.precision_plugin.precision
        if precision == "32-true":
            return MixedPrecisionPolicy()
        if precision == "bf16-mixed":
            # autocast chooses what runs in bfloat16; casting the inputs would round cameras and points as well
            return MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        raise ConfigurationError(f"sharded training takes precision 32-true or bf16-mixed, got {precision}")

    def setup_environment(self) -> None:
        # the parent's own choice is tensor parallelism over the processes of a node
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    def setup(self, trainer: Trainer) -> None:
        assert self.lightning_module is not None
        require_sharded(self.lightning_module)
        if trainer.validate_loop.inference_mode:
            raise ConfigurationError(
                "sharded weights cannot be gathered in inference mode: set trainer.inference_mode to false, as "
                "configs/trainer/fsdp.yaml does"
            )
        super().setup(trainer)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        reshard(self.lightning_module)
        return self.lightning_module.state_dict()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """As ``Optimizer.state_dict``, with names of parameters for their numbers, and this rank's parts alone."""
        names = self._names(optimizer)
        groups = [group | {"params": [names[p] for p in group["params"]]} for group in optimizer.param_groups]
        return {"state": {names[p]: state for p, state in optimizer.state.items()}, "param_groups": groups}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        path = Path(self.broadcast(str(filepath)))
        write_folder(path, checkpoint, self.is_global_zero)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Load a folder written by any number of ranks, or a file written without sharding, into this rank's parts.

        Nothing is unpickled, whatever ``weights_only`` says.
        """
        assert self.lightning_module is not None
        path = Path(self.broadcast(str(checkpoint_path)))
        reshard(self.lightning_module)
        optimizer = self.optimizers[0] if self.optimizers else None
        names = None if optimizer is None else self._names(optimizer)
        restore = restore_folder if path.is_dir() else restore_file
        return restore(path, self.lightning_module, optimizer, names)

    def _names(self, optimizer: Optimizer) -> dict[Tensor, str]:
        assert self.lightning_module is not None
        names: dict[Tensor, str] = {p: name for name, p in self.lightning_module.named_parameters()}
        return {p: names[p] for group in optimizer.param_groups for p in group["params"]}
