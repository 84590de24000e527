"""The frozen CLIP encoders against the reference: tokenizer, tokens, preprocessing, released layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_kits import golden_kits
from safetensors.torch import load_file, save_file
from torch import Tensor

from reconx_pl.diffusion.conditioning.image_tokens import ClipVisionConfig, ClipVisionEncoder, preprocess
from reconx_pl.diffusion.conditioning.text_tokens import ClipTextConfig, ClipTextTokens, tokenize

KITS = golden_kits("clip_*.json")
needs_kit = pytest.mark.skipif(not KITS, reason="needs the golden kits clip_*.json")
each_kit = pytest.mark.parametrize("path", KITS, ids=lambda path: path.stem)
TOLERANCE = 1e-5  # of the largest magnitude; the kits' README allows 1e-4


def _close(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert float((ours - theirs).abs().max() / theirs.abs().max()) <= TOLERANCE


def _vision_config(description: dict[str, Any]) -> ClipVisionConfig:
    return ClipVisionConfig(**description["config"]["vision_cfg"], embed_dim=description["config"]["embed_dim"])


def _text_config(description: dict[str, Any]) -> ClipTextConfig:
    return ClipTextConfig(**description["config"]["text_cfg"], embed_dim=description["config"]["embed_dim"])


@needs_kit
@each_kit
def test_text_tokens(path: Path) -> None:
    description, weights = json.loads(path.read_text()), path.with_suffix(".safetensors")
    kit = load_file(weights)
    # the file holds both frozen encoders under the released names: each takes its own part
    model = ClipTextTokens(_text_config(description), weights=weights)
    _close(model.encode(kit["io.tokens"]), kit["io.text_out"])
    last = ClipTextTokens(_text_config(description), weights=weights, layer="last")
    _close(last.encode(kit["io.tokens"]), kit["io.text_out_last"])
    # a caption alone gives the same tokens as in a batch: batch and sequence axes are not mixed up (open_clip >= 3)
    _close(model.encode(kit["io.tokens"][1:2]), kit["io.text_out"][1:2])
    assert not any(p.requires_grad for p in model.parameters())
    assert not model.train().training


@needs_kit
@each_kit
def test_tokenizer(path: Path) -> None:
    description = json.loads(path.read_text())
    ours = tokenize(description["prompts"])
    assert torch.equal(ours, load_file(path.with_suffix(".safetensors"))["io.real_tokens"])


@needs_kit
@each_kit
@pytest.mark.parametrize("case", ["shrink", "grow"])
def test_image_tokens(path: Path, case: str) -> None:
    description, weights = json.loads(path.read_text()), path.with_suffix(".safetensors")
    kit = load_file(weights)
    if f"io.image_u8.{case}" not in kit:
        pytest.skip(f"this {path.name} has no image to {case}: set RECONX_GOLDEN to a folder of whole kits")
    images = kit[f"io.image_u8.{case}"].float() / 255
    if f"io.preprocessed.{case}" in kit:  # else in the tokens
        _close(preprocess(images), kit[f"io.preprocessed.{case}"])
    encoder = ClipVisionEncoder(_vision_config(description), weights=weights)
    tokens = kit[f"io.image_tokens.{case}"]
    _close(encoder(images), tokens)
    _close(encoder(torch.cat([images, images.flip(-1)]))[:1], tokens)


@needs_kit
@each_kit
def test_null_image(path: Path) -> None:
    description, weights = json.loads(path.read_text()), path.with_suffix(".safetensors")
    kit = load_file(weights)
    grey = torch.full((1, 3, 64, 48), 0.5)
    _close(preprocess(grey)[..., :1, :1], kit["io.preprocessed_zero_pixel"])
    _close(ClipVisionEncoder(_vision_config(description), weights=weights)(grey), kit["io.image_tokens_zero"])


@needs_kit
@each_kit
def test_encoder_alone_loads_too(path: Path, tmp_path: Path) -> None:
    description = json.loads(path.read_text())
    kit = load_file(path.with_suffix(".safetensors"))
    prefix = "embedder.model.visual."
    alone = tmp_path / "visual.safetensors"
    save_file({k[len(prefix) :]: v for k, v in kit.items() if k.startswith(prefix)}, alone)
    encoder = ClipVisionEncoder(_vision_config(description), weights=alone)
    _close(encoder(kit["io.image_u8.grow"].float() / 255), kit["io.image_tokens.grow"])


@pytest.mark.skipif(not golden_kits("unet_512_interp_keys.json"), reason="needs unet_512_interp_keys.json")
def test_released_layout() -> None:
    (path,) = golden_kits("unet_512_interp_keys.json")
    released = {key: value[0] for key, value in json.loads(path.read_text()).items()}
    with torch.device("meta"):
        encoder, text = ClipVisionEncoder(random_init=True), ClipTextTokens(random_init=True)
    for model, prefix in ((encoder.visual, "embedder.model.visual."), (text.text, "cond_stage_model.model.")):
        ours = {name: list(value.shape) for name, value in model.state_dict().items()}
        theirs = {k[len(prefix) :]: v for k, v in released.items() if k.startswith(prefix)}
        theirs.pop("logit_scale", None)
        assert ours == theirs
