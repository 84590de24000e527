"""The frozen CLIP encoders against the reference: tokenizer, tokens, preprocessing, released layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from golden_kits import Described, Held, golden_kits, named_kit, not_held, read_kit, weights_file
from safetensors.torch import save_file
from torch import Tensor

from reconx_pl.diffusion.conditioning.image_tokens import ClipVisionConfig, ClipVisionEncoder, preprocess
from reconx_pl.diffusion.conditioning.text_tokens import ClipTextConfig, ClipTextTokens, tokenize

KITS = golden_kits("clip_*.json")
needs_kit = pytest.mark.skipif(not KITS, reason="needs the golden kits clip_*.json")
each_kit = pytest.mark.parametrize("path", KITS, ids=lambda path: path.stem)
TOLERANCE = 1e-5  # of the largest magnitude; the kits' README allows 1e-4
IMAGE = r"io\.image_u8\.(.+)"
FIXED = {"mlp_ratio": 4.0}  # of every encoder that the release has


def _close(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert float((ours - theirs).abs().max() / theirs.abs().max()) <= TOLERANCE


def _sizes(description: Described, part: str) -> dict[str, Any]:
    sizes = description["config"][part]
    for name, value in FIXED.items():
        if sizes.get(name, value) != value:
            not_held(f"an encoder of the released kind, but one with {name} {sizes[name]}", description.kit)
    return {name: value for name, value in sizes.items() if name not in FIXED} | {
        "embed_dim": description["config"]["embed_dim"]
    }


def _vision_config(description: Described) -> ClipVisionConfig:
    return ClipVisionConfig(**_sizes(description, "vision_cfg"))


def _text_config(description: Described) -> ClipTextConfig:
    return ClipTextConfig(**_sizes(description, "text_cfg"))


def _image_cases() -> list[Any]:
    """The two that there may be, and whatever else a kit has."""
    found = []
    for path in KITS:
        own = read_kit(path)[1].cases(IMAGE) if path.with_suffix(".safetensors").is_file() else []
        found += [
            pytest.param(path, case, id=f"{path.stem}-{case}") for case in dict.fromkeys(["shrink", "grow", *own])
        ]
    return found


@needs_kit
@each_kit
def test_text_tokens(path: Path) -> None:
    description, kit = read_kit(path)
    weights, tokens = weights_file(path), kit["io.tokens"]
    # the file holds both frozen encoders under the released names: each takes its own part
    model = ClipTextTokens(_text_config(description), weights=weights)
    assert not any(p.requires_grad for p in model.parameters())
    assert not model.train().training
    with Held(kit) as held:
        for _, expected in held.of(["io.text_out"]):
            _close(model.encode(tokens), expected)
            # a caption alone gives the same tokens as in a batch: batch and sequence axes are not mixed up
            _close(model.encode(tokens[-1:]), expected[-1:])
        for _, expected in held.of(["io.text_out_last"]):
            last = ClipTextTokens(_text_config(description), weights=weights, layer="last")
            _close(last.encode(tokens), expected)


@needs_kit
@each_kit
def test_tokenizer(path: Path) -> None:
    description, kit = read_kit(path)
    expected = kit["io.real_tokens"]
    assert torch.equal(tokenize(description["prompts"], expected.shape[1]), expected)


@needs_kit
@pytest.mark.parametrize(("path", "case"), _image_cases())
def test_image_tokens(path: Path, case: str) -> None:
    description, kit = read_kit(path)
    config = _vision_config(description)
    images = kit[f"io.image_u8.{case}"].float() / 255
    with Held(kit) as held:
        for _, expected in held.of([f"io.preprocessed.{case}"]):
            _close(preprocess(images, config.image_size), expected)
        for _, expected in held.of([f"io.image_tokens.{case}"]):
            encoder = ClipVisionEncoder(config, weights=weights_file(path))
            _close(encoder(images), expected)
            _close(encoder(torch.cat([images, images.flip(-1)]))[: len(images)], expected)


@needs_kit
@each_kit
def test_null_image(path: Path) -> None:
    description, kit = read_kit(path)
    config = _vision_config(description)
    with Held(kit) as held:
        grey = torch.full((1, 3, 64, 48), 0.5)
        for _, expected in held.of(["io.preprocessed_zero_pixel"]):
            _close(preprocess(grey, config.image_size)[..., :1, :1], expected[:1])
        for _, expected in held.of(["io.image_tokens_zero"]):
            encoder = ClipVisionEncoder(config, weights=weights_file(path))
            _close(encoder(grey.expand(len(expected), -1, -1, -1)), expected)


@needs_kit
@each_kit
def test_encoder_alone_loads_too(path: Path, tmp_path: Path) -> None:
    description, kit = read_kit(path)
    alone = tmp_path / "visual.safetensors"
    save_file(kit.under("embedder.model.visual."), alone)
    encoder = ClipVisionEncoder(_vision_config(description), weights=alone)
    cases = [case for case in kit.cases(IMAGE) if f"io.image_tokens.{case}" in kit]
    if not cases:
        not_held("the tokens of any image", path.name)
    for case in cases:
        _close(encoder(kit[f"io.image_u8.{case}"].float() / 255), kit[f"io.image_tokens.{case}"])


def test_released_layout() -> None:
    released = {key: value[0] for key, value in named_kit("unet_512_interp_keys.json").items()}
    with torch.device("meta"):
        encoder, text = ClipVisionEncoder(random_init=True), ClipTextTokens(random_init=True)
    for model, prefix in ((encoder.visual, "embedder.model.visual."), (text.text, "cond_stage_model.model.")):
        ours = {name: list(value.shape) for name, value in model.state_dict().items()}
        theirs = {k[len(prefix) :]: v for k, v in released.items() if k.startswith(prefix)}
        theirs.pop("logit_scale", None)
        assert ours == theirs
