"""Which parameters a stage trains: the one place (ReconX, V-A)."""

from __future__ import annotations

import re
from collections import Counter
from enum import StrEnum

from torch import nn

from reconx_pl.diffusion.conditioning.frozen import frozen_encoders
from reconx_pl.errors import ConfigurationError


class Stage(StrEnum):
    """A stage of training.

    ``base`` trains everything but the structure branch. The paper has no such stage: it starts from a pretrained
    DynamiCrafter. Models of another size have nothing to start from, and earn their base here.

    ``image_attention`` is the paper's stage 1: only the image cross-attention layers. We read that as the keys and
    values of the image branch (32 tensors, 25.56 M parameters at full size); query and output projections are shared
    with the text branch.

    ``structure`` is the paper's stage 2: the structure encoder and its cross-attention come in, and every spatial
    (that is, not temporal) layer of the U-Net is tuned (722 tensors, 893.5 M parameters at full size).

    ``spatial`` is the control of the paper's ablation: stage 2 at equal budget without the structure condition. The
    same layers of the U-Net are tuned, and no structure branch takes part.

    ``everything`` trains all that is not frozen, the structure branch included: small models that start from nothing.
    """

    base = "base"
    image_attention = "image_attention"
    structure = "structure"
    spatial = "spatial"
    everything = "everything"


# Names are those of ReconXDiffusion.named_parameters(); the first group whose pattern matches owns the parameter.
GROUPS: dict[str, re.Pattern[str]] = {
    "autoencoder": re.compile(r"^autoencoder\."),
    "structure": re.compile(r"^structure_encoder\.|^unet\..*(to_k_structure|to_v_structure|structure_gate)"),
    "image_attention": re.compile(r"^unet\..*\.attn2\.(to_k_ip|to_v_ip)\."),
    "temporal": re.compile(
        r"^unet\.init_attn\.|\.temporal_conv\."
        r"|^unet\.(input_blocks\.\d+|output_blocks\.\d+|middle_block)\.2\.(norm|proj_in|transformer_blocks|proj_out)\."
    ),
    "spatial": re.compile(r"^unet\."),
    "image_tokens": re.compile(r"^image_tokens\."),
    "text_tokens": re.compile(r"^text_tokens\."),
}

TRAINED: dict[Stage, frozenset[str]] = {
    Stage.base: frozenset({"image_attention", "temporal", "spatial", "image_tokens", "text_tokens"}),
    Stage.image_attention: frozenset({"image_attention"}),
    Stage.structure: frozenset({"structure", "image_attention", "spatial"}),
    Stage.spatial: frozenset({"image_attention", "spatial"}),
    Stage.everything: frozenset({"structure", "image_attention", "temporal", "spatial", "image_tokens", "text_tokens"}),
}


def group_of(name: str) -> str:
    """The group that owns a parameter of ``ReconXDiffusion``.

    Raises:
        ConfigurationError: no group owns it; a new module needs its place in ``GROUPS``.
    """
    for group, pattern in GROUPS.items():
        if pattern.search(name):
            return group
    raise ConfigurationError(f"parameter {name} belongs to no group of reconx_pl.training.stages; add a pattern for it")


def frozen_names(network: nn.Module) -> frozenset[str]:
    """Names of the tensors of frozen encoders, which have weights files of their own and are never trained."""
    return frozenset().union(*frozen_encoders(network).values())


def apply_stage(network: nn.Module, stage: Stage) -> Counter[str]:
    """Set ``requires_grad`` for a stage; frozen encoders stay frozen. Returns the trained parameters by group."""
    frozen = frozen_names(network)
    counts: Counter[str] = Counter()
    for name, parameter in network.named_parameters():
        group = group_of(name)
        trained = group in TRAINED[stage] and name not in frozen
        parameter.requires_grad_(trained)
        if trained:
            counts[group] += parameter.numel()
    if not counts:
        raise ConfigurationError(f"stage {stage.value} trains nothing in this model")
    return counts
