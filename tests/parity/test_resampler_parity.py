"""The resampler against the reference: outputs, gradients, and the layout of the released checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from golden_kits import Held, golden_kits, named_kit, read_kit

from reconx_pl.diffusion.conditioning.resampler import Resampler, ResamplerConfig

KITS = golden_kits("resampler_*.json")
PREFIX = "image_proj_model."


@pytest.mark.skipif(not KITS, reason="needs the golden kits resampler_*.json")
@pytest.mark.parametrize("path", KITS, ids=lambda path: path.stem)
@pytest.mark.parametrize("single", [False, True], ids=["per_frame", "single"])
def test_output_and_gradients(path: Path, single: bool) -> None:
    description, kit = read_kit(path)
    variant, io = ("single.", "io.single_") if single else ("", "io.")
    case = description["cases"]["single_out" if single else "out"]
    config = dict(description["config"])
    if single:
        config["video_length"] = None
    model = Resampler(ResamplerConfig(**config))
    prefix = variant + PREFIX
    model.load_state_dict(kit.under(prefix), strict=True)

    x = kit[f"{io}x"].requires_grad_()
    out = model(x)
    if config["video_length"] is not None:
        assert out.shape == (x.shape[0], config["video_length"], config["num_queries"], config["output_dim"])
        out = out.flatten(1, 2)
    if "params" in case:
        assert sum(p.numel() for p in model.parameters()) == case["params"]
    with Held(kit) as held:
        for _, expected in held.of([f"{io}out"]):
            own_error = case.get("max_abs_err_vs_float64", 1e-4 / 20 * float(expected.abs().max()))
            torch.testing.assert_close(out, expected, atol=max(20 * own_error, 2e-6), rtol=0)
        if not held.has(f"{io}grad_out"):
            return
        (out * kit[f"{io}grad_out"]).sum().backward()
        assert x.grad is not None and model.latents.grad is not None
        for part, ours in (("x", x.grad), ("latents", model.latents.grad)):
            for _, theirs in held.of([f"{io}grad.{part}"]):
                assert float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-4
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            if "grad_norms" in case:
                expected = case["grad_norms"][prefix + name]
                assert float(parameter.grad.norm()) == pytest.approx(expected, rel=1e-3), name


def test_released_layout() -> None:
    layout = named_kit("unet_512_interp_keys.json")
    released = {k[len(PREFIX) :]: v[0] for k, v in layout.items() if k.startswith(PREFIX)}
    with torch.device("meta"):
        model = Resampler()
    assert {name: list(value.shape) for name, value in model.state_dict().items()} == released
