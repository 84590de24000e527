"""The resampler against the reference: outputs, gradients, and the layout of the released checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from golden_kits import golden_kits
from safetensors.torch import load_file

from reconx_pl.diffusion.conditioning.resampler import Resampler, ResamplerConfig

KITS = golden_kits("resampler_*.json")
PREFIX = "image_proj_model."


@pytest.mark.skipif(not KITS, reason="needs the golden kits resampler_*.json")
@pytest.mark.parametrize("path", KITS, ids=lambda path: path.stem)
@pytest.mark.parametrize("single", [False, True], ids=["per_frame", "single"])
def test_output_and_gradients(path: Path, single: bool) -> None:
    description, kit = json.loads(path.read_text()), load_file(path.with_suffix(".safetensors"))
    variant, io = ("single.", "io.single_") if single else ("", "io.")
    case = description["cases"]["single_out" if single else "out"]
    config = dict(description["config"], video_length=None if single else description["config"]["video_length"])
    model = Resampler(ResamplerConfig(**config))
    prefix = variant + PREFIX
    model.load_state_dict({k[len(prefix) :]: v for k, v in kit.items() if k.startswith(prefix)}, strict=True)
    assert sum(p.numel() for p in model.parameters()) == case.get("params", 27392)

    x = kit[f"{io}x"].requires_grad_()
    out = model(x)
    expected = kit[f"{io}out"]
    if not single:
        assert out.shape == (x.shape[0], config["video_length"], config["num_queries"], config["output_dim"])
        out = out.flatten(1, 2)
    tolerance = max(20 * case["max_abs_err_vs_float64"], 2e-6)
    torch.testing.assert_close(out, expected, atol=tolerance, rtol=0)

    (out * kit[f"{io}grad_out"]).sum().backward()
    assert x.grad is not None and model.latents.grad is not None
    for ours, theirs in ((x.grad, kit[f"{io}grad.x"]), (model.latents.grad, kit[f"{io}grad.latents"])):
        assert float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-4
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert float(parameter.grad.norm()) == pytest.approx(case["grad_norms"][prefix + name], rel=1e-3), name


@pytest.mark.skipif(not golden_kits("unet_512_interp_keys.json"), reason="needs unet_512_interp_keys.json")
def test_released_layout() -> None:
    (path,) = golden_kits("unet_512_interp_keys.json")
    released = {k[len(PREFIX) :]: v[0] for k, v in json.loads(path.read_text()).items() if k.startswith(PREFIX)}
    with torch.device("meta"):
        model = Resampler()
    assert {name: list(value.shape) for name, value in model.state_dict().items()} == released
