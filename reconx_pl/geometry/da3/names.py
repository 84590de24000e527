"""Names of the released tensors and ours.

The hub's file has every name behind ``model.``. Four stacks of the ray branch share one LayerNorm, which the file has
once, as that of level 0. Only level 3 is computed, so that what is stored of the others is used by nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from reconx_pl.errors import BadWeightsError

PREFIX = "model."
_SHARED = re.compile(r"^(head\.scratch\.output_conv2_aux\.)[123](\.2\.)")

_BLOCK = (
    ("attention_norm", "norm1"),
    ("attention.qkv", "attn.qkv"),
    ("attention.query_norm", "attn.q_norm"),
    ("attention.key_norm", "attn.k_norm"),
    ("attention.out", "attn.proj"),
    ("attention_scale", "ls1"),
    ("mlp_norm", "norm2"),
    ("mlp.0", "mlp.fc1"),
    ("mlp.2", "mlp.fc2"),
    ("mlp_scale", "ls2"),
)
_FUSION = (
    ("skip.conv1", "resConfUnit1.conv1"),
    ("skip.conv2", "resConfUnit1.conv2"),
    ("refine.conv1", "resConfUnit2.conv1"),
    ("refine.conv2", "resConfUnit2.conv2"),
    ("out", "out_conv"),
)
# ours, theirs; the asterisk is the number of a block
_OFFICIAL = {
    "backbone.class_token": "backbone.pretrained.cls_token",
    "backbone.camera_token": "backbone.pretrained.camera_token",
    "backbone.table": "backbone.pretrained.pos_embed",
    "backbone.patches": "backbone.pretrained.patch_embed.proj",
    "backbone.norm": "backbone.pretrained.norm",
    **{f"backbone.blocks.*.{ours}": f"backbone.pretrained.blocks.*.{theirs}" for ours, theirs in _BLOCK},
    "head.norm": "head.norm",
    **{f"head.levels.{level}.project": f"head.projects.{level}" for level in range(4)},
    **{f"head.levels.{level}.resize": f"head.resize_layers.{level}" for level in range(4)},
    **{f"head.levels.{level}.reduce": f"head.scratch.layer{level + 1}_rn" for level in range(4)},
    **{
        f"head.{branch}fusions.{level}.{ours}": f"head.scratch.refinenet{level + 1}{suffix}.{theirs}"
        for branch, suffix in (("", ""), ("rays.", "_aux"))
        for level in range(4)
        for ours, theirs in _FUSION
    },
    "head.narrow": "head.scratch.output_conv1",
    "head.sharpen": "head.scratch.output_conv2.0",
    "head.out": "head.scratch.output_conv2.2",
    **{f"head.rays.narrow.{index}": f"head.scratch.output_conv1_aux.3.{index}" for index in range(5)},
    "head.rays.sharpen": "head.scratch.output_conv2_aux.3.0",
    "head.rays.norm": "head.scratch.output_conv2_aux.0.2",
    "head.rays.out": "head.scratch.output_conv2_aux.3.5",
    "camera_decoder.mlp.0": "cam_dec.backbone.0",
    "camera_decoder.mlp.2": "cam_dec.backbone.2",
    "camera_decoder.translation": "cam_dec.fc_t",
    "camera_decoder.quaternion": "cam_dec.fc_qvec",
    "camera_decoder.field": "cam_dec.fc_fov.0",
    "camera_encoder.embed.0": "cam_enc.pose_branch.fc1",
    "camera_encoder.embed.2": "cam_enc.pose_branch.fc2",
    "camera_encoder.token_norm": "cam_enc.token_norm",
    "camera_encoder.norm": "cam_enc.trunk_norm",
    **{f"camera_encoder.blocks.*.{ours}": f"cam_enc.trunk.*.{theirs}" for ours, theirs in _BLOCK},
}
_NUMBER = re.compile(r"^(backbone|camera_encoder)\.blocks\.(\d+)\.")

#: Stored in every released file and used by nothing: levels 0 to 2 of the ray branch's last convolutions.
UNUSED = frozenset(
    f"head.scratch.{name}.{leaf}"
    for level in range(3)
    for name in (
        *(f"output_conv1_aux.{level}.{index}" for index in range(5)),
        *(f"output_conv2_aux.{level}.{index}" for index in (0, 5)),
    )
    for leaf in ("weight", "bias")
)


def to_official_name(name: str) -> str:
    """Our name of a tensor to the released one, without the prefix."""
    if name in _OFFICIAL:
        return _OFFICIAL[name]
    stem, _, leaf = name.rpartition(".")
    if block := _NUMBER.match(name):
        theirs = _OFFICIAL[f"{block[1]}.blocks.*.{stem[block.end() :]}"].replace("*", block[2])
    else:
        theirs = _OFFICIAL[stem]
    return f"{theirs}.{leaf}"


def canonical(name: str) -> str:
    """The name under which a tensor is stored that four stacks share."""
    return _SHARED.sub(r"\g<1>0\2", name)


def one_name_each(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Released tensors without prefix, under the first of their names, without the unused ones.

    Raises:
        BadWeightsError: two names of one tensor have different values.
    """
    found: dict[str, Tensor] = {}
    for stored, value in state.items():
        name = stored.removeprefix(PREFIX)
        first = canonical(name)
        if first in found and not torch.equal(found[first], value):
            raise BadWeightsError(
                f"{source}: {name} and {first} are one tensor and differ; a converter left one of them at its start "
                "value. Fetch the released file"
            )
        if name not in UNUSED:
            found[first] = value
    return found
