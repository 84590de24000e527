"""The U-Net: what each measure against its cost brings, beside a plain variant of the same model.

``python -m benchmarks.unet [SIZE ...] [--device cuda] [--compile] [--rounds N]``; sizes: demo (the default), small,
full16, full32.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.timing import added_bytes, seconds_of, table
from reconx_pl.diffusion import attention
from reconx_pl.diffusion.attention import DualCrossAttention, Projection, Tokens
from reconx_pl.diffusion.config import UNetConfig
from reconx_pl.diffusion.unet import UNet


@dataclass(frozen=True)
class Size:
    """A model and what it is called with."""

    config: UNetConfig
    batch: int
    frames: int
    height: int
    width: int
    text: int = 77
    image: int = 16  # tokens for each frame
    structure: int = 2048


FULL = UNetConfig.dynamicrafter_512()
SIZES = {
    "demo": Size(UNetConfig.demo(), 4, 8, 16, 16, text=8, image=8, structure=256),
    "small": Size(UNetConfig(model_channels=64, num_head_channels=16, context_dim=256), 1, 8, 32, 32, structure=512),
    "full16": Size(FULL, 1, 16, 40, 64),
    "full32": Size(FULL, 1, 32, 64, 64),
}


@dataclass(frozen=True)
class Case:
    """One way to run it."""

    backward: bool = False
    half: bool = False
    structure: bool = False
    recompute: bool | tuple[str, ...] = False
    plain: tuple[str, ...] = ()  # "einsum": attention matrices in memory; "per frame": keys of every frame anew
    guided: bool = False  # a step of a sampler: three branches in one batch, structure in the last
    cached: bool = False  # keys and values from the first step on
    compiled: bool = False


CASES = {
    "forward": Case(),
    "forward, bf16": Case(half=True),
    "forward, structure": Case(structure=True),
    "forward, plain": Case(plain=("einsum", "per frame")),
    "forward, plain but SDPA": Case(plain=("per frame",)),
    "training": Case(backward=True),
    "training, bf16": Case(backward=True, half=True),
    "training, bf16, structure": Case(backward=True, half=True, structure=True),
    "training, plain": Case(backward=True, plain=("einsum", "per frame")),
    "training, recompute residual": Case(backward=True, recompute=("residual",)),
    "training, recompute spatial, temporal": Case(backward=True, recompute=("spatial", "temporal")),
    "training, recompute all": Case(backward=True, recompute=True),
    "guided step": Case(guided=True, structure=True, cached=True),
    "guided step, keys each step": Case(guided=True, structure=True),
}
COMPILED = {
    "forward, compiled": Case(compiled=True),
    "training, compiled": Case(backward=True, compiled=True),
    "training, bf16, compiled": Case(backward=True, half=True, compiled=True),
}


def einsum_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """[B, heads, N, d] each; the whole attention matrix is made, and kept for the backward pass."""
    scores = torch.einsum("bhnd,bhsd->bhns", query, key) / query.shape[-1] ** 0.5
    return torch.einsum("bhns,bhsd->bhnd", scores.softmax(-1), value)


@contextmanager
def plainly(parts: tuple[str, ...], frames: int) -> Iterator[None]:
    """Take measures back while the block runs."""
    project = DualCrossAttention.project

    def per_frame(layer: DualCrossAttention, tokens: Tokens) -> Projection:
        def repeated(x: Tensor | None) -> Tensor | None:
            return x if x is None or x.ndim == 4 else x[:, None].repeat(1, frames, 1, 1)

        return project(layer, Tokens(*map(repeated, tokens)))  # type: ignore[arg-type]

    with ExitStack() as stack:
        if "einsum" in parts:
            stack.enter_context(patch.object(attention, "fused_attention", einsum_attention))
        if "per frame" in parts:
            stack.enter_context(patch.object(DualCrossAttention, "project", per_frame))
        yield


def step_of(unet: UNet, size: Size, case: Case, device: str) -> Callable[[], None]:
    """The call that is measured."""
    branches = 3 if case.guided else 1
    batch, width = branches * size.batch, size.config.context_dim
    x = torch.randn(batch, size.config.in_channels, size.frames, size.height, size.width, device=device)
    t = torch.full((batch,), 500, device=device)
    fps = torch.full((batch,), 8.0, device=device)
    tokens = {
        "text_tokens": torch.randn(batch, size.text, width, device=device),
        "image_tokens": torch.randn(batch, size.frames, size.image, width, device=device),
    }
    if case.structure:
        tokens["structure_tokens"] = torch.randn(batch, size.structure, width, device=device)
    given: dict = dict(tokens, fps=fps)
    if case.guided and not case.cached:
        given["structure_keep"] = torch.arange(batch, device=device) >= batch - size.batch
    if case.cached:
        tokens["structure_tokens"] = tokens["structure_tokens"][-size.batch :]
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=case.half):
            given = {"fps": fps, "projections": unet.project(**tokens)}

    def call() -> None:
        unet.set_activation_checkpointing(case.recompute)
        grad = torch.enable_grad() if case.backward else torch.inference_mode()
        autocast = torch.autocast("cuda" if device == "cuda" else "cpu", torch.bfloat16, enabled=case.half)
        with plainly(case.plain, size.frames):
            with grad, autocast:
                output = unet(x, t, **given)
            if case.backward:
                output.float().square().mean().backward()
                unet.zero_grad()

    return call


def built(size: Size, device: str, compiled: bool) -> UNet:
    torch.manual_seed(0)
    with torch.device(device):
        return UNet(replace(size.config, compile=compiled)).train()


def floating_point_operations(size: Size, backward: bool) -> float:
    """Of one call without structure, counted on the meta device."""
    unet = built(size, "meta", False)
    with FlopCounterMode(display=False) as counter:
        step_of(unet, size, Case(backward=backward), "meta")()
    return float(counter.get_total_flops())


def peak_bytes(name: str, case: str, device: str) -> int:
    """Peak memory that a call adds to the model, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.unet", name, "--device", device, "--memory-of", case]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return int(json.loads(found.splitlines()[-1])["bytes"])


def report_memory(name: str, case: str, device: str) -> None:
    size = SIZES[name]
    chosen = (CASES | COMPILED)[case]
    unet = built(size, device, chosen.compiled)
    if device == "cpu":
        torch.set_num_threads(1)
    print(json.dumps({"bytes": added_bytes(step_of(unet, size, chosen, device), device)}))


def measure(name: str, device: str, rounds: int, compiled: bool) -> None:
    size = SIZES[name]
    unet = built(size, device, False)
    cases: dict[str, Callable[[], object]] = {case: step_of(unet, size, how, device) for case, how in CASES.items()}
    if compiled:
        meta_model = built(size, device, True)
        cases |= {case: step_of(meta_model, size, how, device) for case, how in COMPILED.items()}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(2048, 2048, device=device, dtype=dtype)
        cases[f"matmul, {dtype}".replace("torch.", "")] = partial(torch.mm, a, a)
    shape = f"{size.batch} x {size.frames} x {size.height} x {size.width} latents"
    print(f"\n{name}: {sum(p.numel() for p in unet.parameters()):,} parameters, {shape}, {device}")
    seconds = seconds_of(cases, rounds, device)
    table(seconds, "training")
    best = {
        half: 2 * 2048**3 / min(seconds[f"matmul, {dtype}"]) for half, dtype in ((False, "float32"), (True, "bfloat16"))
    }
    print(f"a matrix product: {best[False] / 1e9:,.0f} GFLOP/s in float32, {best[True] / 1e9:,.0f} in bfloat16")
    for case, how in (CASES | (COMPILED if compiled else {})).items():
        if how.guided or how.structure or how.plain or how.recompute:
            continue
        work = floating_point_operations(size, how.backward)
        share = work / sorted(seconds[case])[rounds // 2] / best[how.half]
        print(f"{work / 1e9:10,.0f} GFLOP, {share:5.0%} of that   {case}")


def memory(name: str, device: str) -> None:
    for case in CASES:
        print(f"{peak_bytes(name, case, device) / 2**30:8.2f} GiB beside the model   {case}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.unet", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sizes", nargs="*", choices=[*SIZES, []], default=["demo"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=5, help="of timing; 0 for memory alone")
    parser.add_argument("--compile", action="store_true", help="also compiled; compiling takes minutes on a processor")
    parser.add_argument("--memory-of", choices=CASES, help="print the peak memory of one case and end")
    options = parser.parse_args(arguments if arguments is not None else [])
    for name in options.sizes:
        if options.memory_of:
            report_memory(name, options.memory_of, options.device)
            continue
        if options.rounds:
            measure(name, options.device, options.rounds, options.compile)
        memory(name, options.device)


if __name__ == "__main__":
    main(sys.argv[1:])
