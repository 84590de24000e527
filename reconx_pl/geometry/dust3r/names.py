"""Names of the released tensors and ours.

A ``.pth`` file holds eight tensors twice, as ``scratch.layer_rn.N`` and ``scratch.layerN+1_rn``; the hub's file has one
name of each. Every file also holds tensors that the network stores and never uses: ``unused_names``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from reconx_pl.errors import BadWeightsError
from reconx_pl.geometry.dust3r.config import Dust3rConfig

_ALIAS = re.compile(r"^(downstream_head[12]\.dpt\.scratch\.)layer_rn\.([0-3])\.")

# ours, theirs; the asterisk is the number of a block
_TABLE = (
    ("encoder.patches", "patch_embed.proj"),
    ("encoder.norm", "enc_norm"),
    ("decoders.embed", "decoder_embed"),
    ("decoders.norm", "dec_norm"),
    *(
        (f"{ours}.{name}", f"{theirs}.{official}")
        for ours, theirs, mlp_norm in (
            ("encoder.blocks.*", "enc_blocks.*", "norm2"),
            ("decoders.first.*", "dec_blocks.*", "norm3"),
            ("decoders.second.*", "dec_blocks2.*", "norm3"),
        )
        for name, official in (
            ("self_norm", "norm1"),
            ("self_attention.qkv", "attn.qkv"),
            ("self_attention.out", "attn.proj"),
            ("mlp_norm", mlp_norm),
            ("mlp.0", "mlp.fc1"),
            ("mlp.2", "mlp.fc2"),
        )
    ),
    *(
        (f"{ours}.{name}", f"{theirs}.{official}")
        for ours, theirs in (("decoders.first.*", "dec_blocks.*"), ("decoders.second.*", "dec_blocks2.*"))
        for name, official in (
            ("cross_norm", "norm2"),
            ("memory_norm", "norm_y"),
            ("cross_attention.query", "cross_attn.projq"),
            ("cross_attention.key", "cross_attn.projk"),
            ("cross_attention.value", "cross_attn.projv"),
            ("cross_attention.out", "cross_attn.proj"),
        )
    ),
    *(
        (f"{ours}.{name}", f"{theirs}.{official}")
        for ours, theirs in (("first_head", "downstream_head1"), ("second_head", "downstream_head2"))
        for name, official in (
            ("proj", "proj"),
            *((f"levels.{level}.project", f"dpt.act_postprocess.{level}.0") for level in range(4)),
            *((f"levels.{level}.resize", f"dpt.act_postprocess.{level}.1") for level in range(4)),
            *((f"levels.{level}.reduce", f"dpt.scratch.layer{level + 1}_rn") for level in range(4)),
            *(
                (f"fusions.{level}.{unit}", f"dpt.scratch.refinenet{level + 1}.{official_unit}")
                for level in range(4)
                for unit, official_unit in (
                    ("skip.conv1", "resConfUnit1.conv1"),
                    ("skip.conv2", "resConfUnit1.conv2"),
                    ("refine.conv1", "resConfUnit2.conv1"),
                    ("refine.conv2", "resConfUnit2.conv2"),
                    ("out", "out_conv"),
                )
            ),
            ("narrow", "dpt.head.0"),
            ("sharpen", "dpt.head.2"),
            ("out", "dpt.head.4"),
        )
    ),
)
_OFFICIAL = dict(_TABLE)
_BLOCK = re.compile(r"^(encoder\.blocks|decoders\.first|decoders\.second)\.(\d+)\.")


def to_official_name(name: str) -> str:
    """Our name of a tensor to the released one."""
    stem, _, leaf = name.rpartition(".")
    if block := _BLOCK.match(name):
        stem = _OFFICIAL[f"{block[1]}.*{stem[block.end() - 1 :]}"].replace("*", block[2])
    else:
        stem = _OFFICIAL[stem]
    return f"{stem}.{leaf}"


def canonical(name: str) -> str:
    """The first name of a tensor that has two."""
    return _ALIAS.sub(lambda found: f"{found[1]}layer{int(found[2]) + 1}_rn.", name)


def unused_names(config: Dust3rConfig) -> set[str]:
    """Released names that are stored and unused.

    They are the token of the masked pre-training, and the coarsest level's unit for a coarser one, which there is not.
    """
    names = {"mask_token"}
    if config.head == "dpt":
        names |= {
            f"downstream_head{head}.dpt.scratch.refinenet4.resConfUnit1.conv{conv}.{leaf}"
            for head in (1, 2)
            for conv in (1, 2)
            for leaf in ("weight", "bias")
        }
    return names


def one_name_each(state: Mapping[str, Tensor], config: Dust3rConfig, source: str) -> dict[str, Tensor]:
    """Released tensors under the first of their names, without the unused ones.

    Raises:
        BadWeightsError: two names of one tensor have different values.
    """
    found: dict[str, Tensor] = {}
    unused = unused_names(config)
    for name, value in state.items():
        first = canonical(name)
        if first in found and not torch.equal(found[first], value):
            raise BadWeightsError(f"{source}: {name} and {first} are one tensor and differ; fetch the file again")
        if name not in unused:
            found[first] = value
    return found
