"""Point maps of the edges of a pair graph: every image is encoded once, pairs of one shape are decoded together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reconx_pl.errors import BadSceneError, ConfigurationError
from reconx_pl.geometry.dust3r.config import PATCH, Dust3rConfig
from reconx_pl.geometry.dust3r.model import Dust3r, ViewTokens
from reconx_pl.geometry.estimators.pair_predictions import PairPredictions
from reconx_pl.types import Progress

GIB = 2**30


@dataclass(frozen=True)
class InferenceOptions:
    """How a pair graph is worked off; none of it changes what is computed, but for ``bf16``.

    Args:
        memory_gib: for the activations of a chunk of pairs, GiB; the chunk is as large as fits, by an estimate, and
            one pair at least.
        batch_size: pairs in a chunk; None leaves it to ``memory_gib``.
        bf16: encoder and decoders in bfloat16 (autocast); rotary angles and heads stay in float32.

    Raises:
        ConfigurationError: numbers that are not positive.
    """

    memory_gib: float = 4.0
    batch_size: int | None = None
    bf16: bool = False

    def __post_init__(self) -> None:
        if self.memory_gib <= 0 or (self.batch_size is not None and self.batch_size < 1):
            raise ConfigurationError(
                f"memory_gib and batch_size must be positive, got {self.memory_gib} and {self.batch_size}"
            )


def predict_pairs(
    model: Dust3r,
    images: Sequence[Tensor],
    edges: Tensor,
    options: InferenceOptions = InferenceOptions(),
    progress: Progress | None = None,
) -> PairPredictions:
    """What the model says of every directed edge; (i, j) and (j, i) are two edges and two answers.

    The encoder sees each image once, whatever the number of its edges, and images without an edge not at all.

    Args:
        model: on the device that computes; in evaluation mode.
        images: V of [3, H, W] in [0, 1], sides multiples of 16, sizes may differ; see ``prepare_image``.
        edges: [E, 2] int64, first and second view; see ``PairGraph``.
        options: memory and precision.
        progress: counts images and edges.

    Returns:
        Predictions in the order of ``edges``, float32 on the CPU.

    Raises:
        BadSceneError: no edges, or one that names a view that there is not.
        ConfigurationError: an image of a shape that the network does not take.
    """
    pairs = edges.tolist()
    if edges.ndim != 2 or edges.shape[1:] != (2,) or not pairs:
        raise BadSceneError(f"edges are [E, 2] with at least one edge, got {tuple(edges.shape)}")
    used = sorted({view for pair in pairs for view in pair})
    if used[0] < 0 or used[-1] >= len(images):
        raise BadSceneError(f"the edges name views {used[0]} to {used[-1]}, and there are {len(images)} images")
    total, done = len(used) + len(pairs), 0
    device = next(model.parameters()).device

    def step(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress("pairs", done, total)

    predicted: list[tuple[Tensor, ...] | None] = [None] * len(pairs)
    # not inference_mode: the alignment puts these tensors into a graph of its own
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=options.bf16):
        tokens: dict[int, ViewTokens] = {}
        for shape, views in _groups(used, lambda view: tuple(images[view].shape)):
            for chunk in _chunks(views, _chunk_size(model.config, [shape], options)):
                encoded = model.encode(torch.stack([images[view] for view in chunk]).to(device) * 2 - 1)
                for row, view in enumerate(chunk):
                    tokens[view] = encoded._replace(tokens=encoded.tokens[row : row + 1])
                step(len(chunk))
        shapes = [tuple(tuple(images[view].shape) for view in pair) for pair in pairs]
        for both, rows in _groups(range(len(pairs)), lambda row: shapes[row]):
            for chunk in _chunks(rows, _chunk_size(model.config, both, options)):
                first, second = (_batch([tokens[pairs[row][side]] for row in chunk]) for side in (0, 1))
                output = model.decode(first, second)
                parts = [part.float().cpu() for part in output]
                for place, row in enumerate(chunk):
                    predicted[row] = tuple(part[place] for part in parts)
                step(len(chunk))
    rows_of = [row for row in predicted if row is not None]
    return PairPredictions(
        edges.cpu(),
        points=[(row[0], row[2]) for row in rows_of],
        confidence=[(row[1], row[3]) for row in rows_of],
    )


def _groups(items: Sequence[int], key: Callable[[int], tuple]) -> list[tuple[tuple, list[int]]]:
    """Items of one key together, in their order."""
    found: dict[tuple, list[int]] = defaultdict(list)
    for item in items:
        found[key(item)].append(item)
    return list(found.items())


def _chunks(items: list[int], size: int) -> list[list[int]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _batch(views: list[ViewTokens]) -> ViewTokens:
    return views[0]._replace(tokens=torch.cat([view.tokens for view in views]))


def _chunk_size(config: Dust3rConfig, shapes: Sequence[tuple[int, ...]], options: InferenceOptions) -> int:
    """How many images, or pairs of images, of these shapes fit into the memory."""
    if options.batch_size is not None:
        return options.batch_size
    return max(1, int(options.memory_gib * GIB // sum(_bytes(config, *shape[-2:]) for shape in shapes)))


def _bytes(config: Dust3rConfig, height: int, width: int) -> int:
    """An estimate of the peak of one image's activations in float32, from the largest tensors that live together."""
    patches = height * width // PATCH**2
    blocks = patches * (config.mlp_ratio * 2 + 8) * config.encoder_width
    if config.head == "linear":
        return 4 * blocks
    hooks = patches * (config.encoder_width + 3 * config.decoder_width)
    # at the end of the DPT head: its input at half the size, three images of full size
    head = height * width * (config.dpt_width // 4 + 3 * config.dpt_output_width)
    return 4 * (hooks + max(blocks, head))
