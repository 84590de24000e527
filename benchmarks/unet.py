"""The demo's U-Net: what a backward pass, bfloat16 and the structure condition cost."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.timing import processor_seconds, table
from reconx_pl.diffusion.config import UNetConfig
from reconx_pl.diffusion.unet import UNet


def main() -> None:
    torch.manual_seed(0)
    batch, frames, side = 4, 8, 16
    config = UNetConfig.demo()
    unet = UNet(config)
    tokens = {
        "text_tokens": torch.randn(batch, 77, config.context_dim),
        "image_tokens": torch.randn(batch, frames, 8, config.context_dim),
        "fps": torch.full((batch,), 8.0),
    }
    structure = {"structure_tokens": torch.randn(batch, 256, config.context_dim)}
    x, t = torch.randn(batch, config.in_channels, frames, side, side), torch.full((batch,), 500)

    def run(half: bool, backward: bool, extra: dict[str, torch.Tensor]) -> Callable[[], None]:
        def call() -> None:
            with torch.set_grad_enabled(backward), torch.autocast("cpu", torch.bfloat16, enabled=half):
                output = unet(x, t, **tokens, **extra)
            if backward:
                output.float().square().mean().backward()

        return call

    print(f"{sum(p.numel() for p in unet.parameters()):,} parameters, {batch} x {frames} x {side} x {side} latents")
    table(
        processor_seconds(
            {
                "forward, fp32": run(False, False, {}),
                "forward, bf16": run(True, False, {}),
                "forward + backward, fp32": run(False, True, {}),
                "forward + backward, bf16": run(True, True, {}),
                "forward + backward, bf16, structure": run(True, True, structure),
            }
        ),
        "forward + backward, fp32",
    )


if __name__ == "__main__":
    main()
