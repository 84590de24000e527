"""DUSt3R: inference over a pair graph, beside a plain variant of the same network.

``python -m benchmarks.dust3r [SIZE ...] [--device cuda] [--rounds N]``; sizes: mid, full. Plain: the attention matrix
is made (einsum), images are encoded for every pair that they are in, and the heads' 1 x 1 convolutions follow the
interpolation. Both give the same point maps up to rounding; the difference is printed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.timing import peak_bytes, seconds_of, table
from reconx_pl.geometry.dust3r import blocks
from reconx_pl.geometry.dust3r.config import Dust3rConfig
from reconx_pl.geometry.dust3r.heads import Fusion, enlarged
from reconx_pl.geometry.dust3r.inference import InferenceOptions, predict_pairs
from reconx_pl.geometry.dust3r.model import Dust3r
from reconx_pl.geometry.estimators.pairs import PairGraph


@dataclass(frozen=True)
class Size:
    """A network and the images that it is called with."""

    config: Dust3rConfig
    height: int
    width: int
    views: int  # of the complete graph


MID = Dust3rConfig(
    encoder_width=512, encoder_depth=8, encoder_heads=8, decoder_width=384, decoder_depth=12, decoder_heads=6
)
SIZES = {"mid": Size(MID, 192, 256, 4), "full": Size(Dust3rConfig(), 384, 512, 3)}
PARTS = ("einsum", "late 1 x 1", "encode per pair")


def einsum_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    scores = torch.einsum("bhnd,bhmd->bhnm", query, key) / query.shape[-1] ** 0.5
    return torch.einsum("bhnm,bhmd->bhnd", scores.softmax(-1), value)


def late_convolution(fusion: Fusion, level: Tensor, coarser: Tensor | None) -> Tensor:
    if fusion.skip is not None:
        level = coarser + fusion.skip(level)
    return fusion.out(enlarged(fusion.refine(level)))


@contextmanager
def plain(parts: tuple[str, ...]) -> Iterator[None]:
    attention = einsum_attention if "einsum" in parts else blocks.fused_attention
    convolution = late_convolution if "late 1 x 1" in parts else Fusion.forward
    with patch.object(blocks, "fused_attention", attention), patch.object(Fusion, "forward", convolution):
        yield


def images_of(size: Size) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return list(torch.rand(size.views, 3, size.height, size.width, generator=generator))


def call_of(model: Dust3r, size: Size, edges: Tensor, parts: tuple[str, ...], half: bool) -> Callable[[], Tensor]:
    """Points of the last edge's second view, in the way that ``parts`` say."""
    images, options = images_of(size), InferenceOptions(batch_size=1, bf16=half)

    def call() -> Tensor:
        with plain(parts):
            if "encode per pair" not in parts:
                return predict_pairs(model, images, edges, options).points[-1][1]
            for edge in edges:
                points = predict_pairs(model, images, edge[None], options).points[0][1]
            return points

    return call


def built(size: Size, device: str) -> Dust3r:
    torch.manual_seed(0)
    with torch.device(device):
        return Dust3r(size.config).eval()


def measure(name: str, device: str, rounds: int) -> None:
    size = SIZES[name]
    model = built(size, device)
    pair, graph = torch.tensor([[0, 1]]), PairGraph().edges(size.views)
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"\n{name}: {count:,} parameters, {size.width} x {size.height} pixels, {device}")
    exact = call_of(model, size, pair, (), False)()
    naive = call_of(model, size, pair, PARTS, False)()
    print(f"plain and ours differ by {(exact - naive).abs().max() / exact.abs().max():.1e} of the largest point")
    table(
        seconds_of(
            {
                "one pair": call_of(model, size, pair, (), False),
                "one pair, einsum": call_of(model, size, pair, PARTS[:1], False),
                "one pair, einsum, late 1 x 1": call_of(model, size, pair, PARTS[:2], False),
                "one pair, bf16": call_of(model, size, pair, (), True),
            },
            rounds,
            device,
        ),
        "one pair",
    )
    ours = f"{size.views} views, {len(graph)} edges"
    table(
        seconds_of(
            {
                ours: call_of(model, size, graph, (), False),
                f"{ours}, encode per pair": call_of(model, size, graph, PARTS[2:], False),
                f"{ours}, plain": call_of(model, size, graph, PARTS, False),
            },
            max(1, rounds // 3),
            device,
        ),
        ours,
    )
    for kind in ("ours", "bf16", "plain"):
        command = [sys.executable, "-m", "benchmarks.dust3r", name, "--device", device, "--memory-of", kind]
        found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        before, after = json.loads(found.splitlines()[-1])
        print(
            f"{after / 2**30:6.2f} GiB at the peak of a pair, {(after - before) / 2**30:.2f} beside the model   {kind}"
        )


def report_memory(name: str, device: str, kind: str) -> None:
    size = SIZES[name]
    model = built(size, device)
    call = call_of(model, size, torch.tensor([[0, 1]]), PARTS if kind == "plain" else (), kind == "bf16")
    torch.set_num_threads(1)
    before = peak_bytes(device)
    call()
    print(json.dumps([before, peak_bytes(device)]))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dust3r", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sizes", nargs="*", choices=[*SIZES, []], default=["mid"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--views", type=int, help="of the complete graph")
    parser.add_argument("--memory-of", choices=["ours", "bf16", "plain"], help="print the peak memory and end")
    options = parser.parse_args(arguments if arguments is not None else [])
    for name in options.sizes:
        if options.views:
            SIZES[name] = replace(SIZES[name], views=options.views)
        if options.memory_of:
            report_memory(name, options.device, options.memory_of)
        else:
            measure(name, options.device, options.rounds)


if __name__ == "__main__":
    main(sys.argv[1:])
