"""Cameras as nine numbers: which is which, there and back, and fields of view that no camera has."""

from __future__ import annotations

import math

import pytest
import torch
from da3_networks import tiny_network

from reconx_pl.geometry.da3.cameras import decoded_cameras, encoded_cameras, failed_fields


def test_which_number_is_which() -> None:
    half = math.sin(math.pi / 4)
    # a quarter turn about z, of a quaternion twice too long; 90 degrees along the height, twice the tangent along x
    encoding = torch.tensor([1, 2, 3, 0, 0, 2 * half, 2 * half, math.pi / 2, 2 * math.atan(2)])
    world_to_camera, intrinsics = decoded_cameras(encoding, 60, 80)
    to_world = torch.tensor([[0.0, -1, 0, 1], [1, 0, 0, 2], [0, 0, 1, 3], [0, 0, 0, 1]])
    assert torch.allclose(torch.linalg.inv(world_to_camera), to_world, atol=1e-6)
    assert torch.allclose(intrinsics, torch.tensor([[20.0, 0, 40], [0, 30, 30], [0, 0, 1]]), atol=1e-4)


def test_there_and_back() -> None:
    generator = torch.Generator().manual_seed(0)
    encoding = torch.randn(2, 3, 9, generator=generator)
    encoding[..., 7:] = 0.5 + torch.rand(2, 3, 2, generator=generator)
    cameras = decoded_cameras(encoding, 42, 56)
    found = encoded_cameras(*cameras, 42, 56)
    assert (found[..., 6] >= 0).all() and torch.allclose(found[..., 3:7].norm(dim=-1), torch.ones(2, 3))
    for again, before in zip(decoded_cameras(found, 42, 56), cameras, strict=True):
        assert torch.allclose(again, before, atol=1e-4)


def test_fields_of_view_that_no_camera_has() -> None:
    fields = torch.tensor([[1.0, 1.0], [0.0, 1.0], [1.0, 3.13], [4.0, 1.0], [math.nan, 1.0], [0.02, 3.1]])
    encoding = torch.cat([torch.zeros(6, 7), fields], dim=1)
    assert failed_fields(encoding).tolist() == [False, True, True, True, True, False]
    assert torch.isfinite(decoded_cameras(encoding[1] + 1e-3, 42, 56)[1]).all()


def test_every_norm_has_its_epsilon() -> None:
    model = tiny_network()
    found = {name: module.eps for name, module in model.named_modules() if isinstance(module, torch.nn.LayerNorm)}
    fine = {name for name, eps in found.items() if eps == pytest.approx(1e-6)}
    assert fine == {f"backbone.blocks.{block}.{norm}_norm" for block in range(6) for norm in ("attention", "mlp")}
    assert all(eps == pytest.approx(1e-5) for name, eps in found.items() if name not in fine)
