"""Hashes outlive a renaming: what earlier versions cached and recorded is still recognised."""

from __future__ import annotations

import pytest
import torch

from reconx_pl.diffusion.conditioning.image_tokens import ClipVisionConfig, ClipVisionEncoder
from reconx_pl.evaluation.protocols.files import load_protocol, parse_protocol


def test_members_that_an_old_image_encoder_made_are_still_its_own() -> None:
    config = ClipVisionConfig(image_size=28, patch_size=14, width=40, layers=1, head_width=10, embed_dim=8)
    encoder = ClipVisionEncoder(config, random_init=True)
    with torch.no_grad():
        for value in encoder.state_dict().values():
            if value.is_floating_point():
                value.fill_(0.5)
    assert encoder.fingerprint() == "1ebc5a5e84e51ade9dda3d82f3876541670021bd8ff1b6767311dec52f09ae36"


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("re10k-easy", "611cd190f1d89dd298981a75a0613f766b063f90952ac595adeeda86fc7a054f"),
        ("procedural-v1-hard", "b0a5e0ce55fb43fbb587eed98d90ccd3ff3c2b1c2f37123d1d8766f42e3026f3"),
    ],
)
def test_protocols_keep_their_hashes(name: str, digest: str) -> None:
    assert load_protocol(name).hash == digest


def test_an_old_protocol_file_is_the_same_protocol() -> None:
    content = {"name": "own", "title": "Own", "dataset": "own", "format": "posed", "path": "{scene}", "height": 64}
    content |= {"width": 64, "entries": {"banana": {"context": [0, 4], "target": [2]}}}
    old = parse_protocol({**content, "poses": {"painted": "aligned"}}, "own.yaml")
    new = parse_protocol({**content, "poses": {"generated": "aligned"}}, "own.yaml")
    assert old == new and old.hash == new.hash and old.hashed["poses"]["painted"] == "aligned"
