"""Everything that Depth-Anything-3 computes on its way, under the names of the golden kits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from reconx_pl.geometry.da3.model import DepthAnything3
from reconx_pl.geometry.da3.reference import ReferenceView


@torch.no_grad()
def activations(
    model: DepthAnything3,
    images: Tensor,
    world_to_camera: Tensor | None = None,
    intrinsics: Tensor | None = None,
    reference: ReferenceView = "saddle_balanced",
) -> dict[str, Tensor]:
    """Run the network with its ray branch; every result is [B, V, ...], the views in the order of the input.

    Blocks from the one before the first cross-view block on are in the original's order, the reference view first.
    """
    batch, views = images.shape[:2]
    found: dict[str, Tensor] = {}
    handles = []

    def views_of(value: Tensor) -> Tensor:
        return value.unflatten(0, (batch, views))

    def keep(module: nn.Module, name: str, change: Callable[[Tensor], Tensor] = views_of) -> None:
        handles.append(module.register_forward_hook(lambda _, args, out: found.__setitem__(name, change(out))))

    def keep_input(module: nn.Module, name: str, change: Callable[[Tensor], Tensor] = views_of) -> None:
        handles.append(module.register_forward_pre_hook(lambda _, args: found.__setitem__(name, change(args[0]))))

    def rows(value: Tensor) -> Tensor:  # of a convolution, as tokens
        return value.flatten(2).transpose(1, 2).unflatten(0, (batch, views))

    def tokens(value: Tensor) -> Tensor:  # of a block within views or across them
        return value.reshape(batch, views, -1, value.shape[-1])

    def plain(value: Tensor) -> Tensor:
        return value

    backbone, head = model.backbone, model.head
    keep(backbone.patches, "patch", rows)
    keep_input(backbone.blocks[0], "embed", tokens)
    for index, block in enumerate(backbone.blocks):
        keep(block, f"block.{index:02}", tokens)
    normed: list[Tensor] = []
    handles.append(head.norm.register_forward_hook(lambda _, args, out: normed.append(views_of(out))))
    for index, level in enumerate(head.levels):
        keep(level.project, f"head.project.{index}")
        keep_input(level.resize, f"head.project_pos.{index}")
        keep(level.resize, f"head.resize.{index}")
        keep(level.reduce, f"head.rn.{index + 1}")
        keep(head.fusions[index], f"head.fuse.{index + 1}")
        keep(head.rays.fusions[index], f"head.fuse_aux.{index + 1}")
    keep(head.narrow, "head.conv1")
    keep_input(head.sharpen, "head.up_pos")
    keep(head.out, "head.logits")
    keep(head.rays.narrow, "head.conv1_aux")
    keep_input(head.rays.sharpen, "head.pos_aux")
    keep(head.rays.out, "head.logits_aux")
    keep(model.camera_decoder.mlp, "cam_dec.mlp", plain)
    encoder = model.camera_encoder
    keep_input(encoder, "cam_enc.pose_encoding", plain)
    keep(encoder.embed, "cam_enc.branch", plain)
    keep(encoder.token_norm, "cam_enc.token_norm", plain)
    for index, block in enumerate(encoder.blocks):
        keep(block, f"cam_enc.trunk.{index}", plain)
    keep(encoder, "cam_enc.token", plain)

    taps = model.encode(images, world_to_camera, intrinsics, reference)
    output = model.decode(taps, views_at_once=batch * views, with_rays=True)
    for handle in handles:
        handle.remove()

    for index, tap in enumerate(taps.tokens):
        found[f"tap.{index}"], found[f"tap_token.{index}"] = backbone.for_head(tap), tap[:, :, 0]
        found[f"head.norm.{index}"] = normed[index]
    found["camera_token"] = taps.tokens[-1][:, :, 0]
    if taps.reference is not None and views > 2:
        found["reference_view"] = taps.reference
        for index in range(model.config.cross_view_start - 1, model.config.depth):
            found[f"block.{index:02}"] = _reference_first(found[f"block.{index:02}"], taps.reference)
    assert output.rays is not None
    return found | {
        "depth": output.depth,
        "depth_conf": output.confidence,
        "pose_enc": output.encoding,
        "extrinsics": output.world_to_camera[..., :3, :],
        "intrinsics": output.intrinsics,
        "ray": torch.cat([output.rays.directions, output.rays.origins], dim=-1),
        "ray_conf": output.rays.confidence,
    }


def _reference_first(value: Tensor, reference: Tensor) -> Tensor:
    orders = [[view, *(other for other in range(value.shape[1]) if other != view)] for view in reference.tolist()]
    return torch.stack([one[order] for one, order in zip(value, orders, strict=True)])
