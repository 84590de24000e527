"""The nouns move as one: all their tensors, also those of nouns within, and nothing else of them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from reconx_pl import types
from reconx_pl.types import AlignmentQuality, Cameras, Clip, ClipRenders, Gaussians, PointCloud, PointMap, Tensors


def cameras() -> Cameras:
    return Cameras(torch.eye(4).repeat(2, 1, 1), torch.eye(3).repeat(2, 1, 1), 4, 6)


def cloud() -> PointCloud:
    return PointCloud(torch.rand(5, 3), torch.rand(5, 3), torch.ones(5))


def clip(**geometry: Any) -> Clip:
    return Clip("k", "d", "s", torch.zeros(2, 3, 4, 6, dtype=torch.uint8), cameras(), (0, 3), 24.0, **geometry)


NOUNS: dict[str, Tensors] = {
    "cameras": cameras(),
    "point map": PointMap(torch.rand(2, 4, 6, 3), torch.ones(2, 4, 6), torch.ones(2, 4, 6, dtype=torch.bool)),
    "cloud": cloud(),
    "clip": clip(depth=torch.ones(2, 4, 6), cloud=cloud(), alignment=AlignmentQuality((0.1, 0.2), (1.0, 2.0))),
    "clip without geometry": clip(),
    "renders": ClipRenders(torch.rand(2, 1, 3, 3, 4, 6), torch.ones(2, 1, 3, 4, 6)),
    "gaussians": Gaussians(
        torch.rand(5, 3), torch.rand(5, 4), torch.rand(5, 3), torch.rand(5), torch.rand(5, 4, 3), torch.rand(3)
    ),
}
each_noun = pytest.mark.parametrize("noun", NOUNS.values(), ids=NOUNS)


def tensors(noun: Tensors, of: str = "") -> dict[str, Tensor]:
    """Every tensor by the path of its field: cameras.intrinsics."""
    found: dict[str, Tensor] = {}
    for item in fields(noun):  # type: ignore[arg-type]
        value, name = getattr(noun, item.name), f"{of}{item.name}"
        if isinstance(value, Tensor):
            found[name] = value
        elif isinstance(value, Tensors):
            found |= tensors(value, f"{name}.")
    return found


def rest(noun: Tensors) -> dict[str, object]:
    """Every field that holds no tensor."""
    values = {item.name: getattr(noun, item.name) for item in fields(noun)}  # type: ignore[arg-type]
    return {name: value for name, value in values.items() if not isinstance(value, Tensor | Tensors)}


def test_every_noun_is_in_the_table() -> None:
    nouns = {kind for kind in vars(types).values() if isinstance(kind, type) and issubclass(kind, Tensors)}
    assert {type(noun) for noun in NOUNS.values()} == nouns - {Tensors}


@each_noun
def test_all_tensors_move_and_keep_their_types(noun: Tensors) -> None:
    moved = noun.to("meta")
    assert type(moved) is type(noun) and rest(moved) == rest(noun)
    assert {name: (tensor.device.type, tensor.dtype, tensor.shape) for name, tensor in tensors(moved).items()} == {
        name: ("meta", tensor.dtype, tensor.shape) for name, tensor in tensors(noun).items()
    }


@each_noun
def test_a_type_is_that_of_floating_point_tensors_alone(noun: Tensors) -> None:
    cast = noun.to(dtype=torch.float64)
    assert rest(cast) == rest(noun)
    for name, tensor in tensors(noun).items():
        after = tensors(cast)[name]
        assert after.dtype == (torch.float64 if tensor.is_floating_point() else tensor.dtype), name
        assert after.device == tensor.device and torch.equal(after.to(tensor.dtype), tensor), name


@each_noun
def test_a_copy_is_out_of_the_graph_and_shares_no_memory(noun: Tensors) -> None:
    grown = noun.copied()
    for tensor in tensors(grown).values():
        tensor.requires_grad_(tensor.is_floating_point())
    copy = grown.copied()
    assert type(copy) is type(noun) and rest(copy) == rest(noun)
    for name, tensor in tensors(grown).items():
        after = tensors(copy)[name]
        assert torch.equal(after, tensor) and not after.requires_grad and after.data_ptr() != tensor.data_ptr(), name


def test_a_copy_of_what_was_made_in_inference_mode_enters_a_graph() -> None:
    with torch.inference_mode():
        made = cloud()
    copy = made.copied()
    assert made.points.is_inference() and not copy.points.is_inference()
    (copy.points.requires_grad_() * 2.0).sum().backward()
