"""Frozen parts: whose hash is whose, and what they remember."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from reconx_pl.diffusion.autoencoder import KLAutoencoder, KLAutoencoderConfig, PixelUnshuffleAutoencoder
from reconx_pl.diffusion.conditioning.frozen import FrozenModule
from reconx_pl.diffusion.conditioning.image_tokens import ClipImageTokens, ClipVisionConfig
from reconx_pl.diffusion.conditioning.resampler import ResamplerConfig
from reconx_pl.diffusion.conditioning.text_tokens import ClipTextConfig, ClipTextTokens

TEXT = ClipTextConfig(width=32, heads=4, layers=3, embed_dim=24)
VISION = ClipVisionConfig(image_size=56, patch_size=14, width=40, layers=2, head_width=10, embed_dim=24)
VAE = KLAutoencoderConfig(block_out_channels=(32, 64), layers_per_block=1)
RESAMPLER = ResamplerConfig(
    dim=16, depth=1, dim_head=8, heads=2, num_queries=3, embedding_dim=40, output_dim=12, video_length=4
)


class Encoder(FrozenModule):
    """y = w x, and a count of its calls."""

    def __init__(self, value: float = 1.0, config: str = "a") -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2, bias=False)
        nn.init.constant_(self.linear.weight, value)
        self.config, self.calls = config, 0
        self.freeze()

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.linear(x)

    def of(self, number: float) -> Tensor:
        return self.recall(number, lambda: self(torch.full((1, 2), number)))


def test_a_fingerprint_tells_weights_and_settings_apart_and_nothing_else() -> None:
    own = Encoder().fingerprint()
    assert len(own) == 64 and own == Encoder().fingerprint()
    assert own != Encoder(1.0000001).fingerprint()
    assert own != Encoder(config="b").fingerprint()
    assert own != Encoder().double().fingerprint()
    moved = Encoder()
    moved.linear.weight.data = moved.linear.weight.data.t().contiguous().t()  # another memory order, same numbers
    assert own == moved.fingerprint()


def test_encoders_and_autoencoders_have_fingerprints() -> None:
    torch.manual_seed(0)
    text = ClipTextTokens(TEXT, random_init=True)
    first = text.fingerprint()
    text.layer = "last"
    assert text.fingerprint() != first
    vae = KLAutoencoder(VAE, random_init=True)
    assert vae.fingerprint() != KLAutoencoder(VAE, random_init=True).fingerprint()
    assert KLAutoencoder(VAE, random_init=True, chunk=1).settings() == vae.settings()  # how it is cut does not matter
    assert PixelUnshuffleAutoencoder(8).fingerprint() != PixelUnshuffleAutoencoder(4).fingerprint()


def test_a_renamed_class_keeps_its_fingerprint_and_so_the_caches_made_by_it() -> None:
    encoder = ClipImageTokens(VISION, RESAMPLER, random_init=True).encoder
    for parameter in encoder.parameters():
        nn.init.constant_(parameter, 0.5)
    assert encoder.fingerprint() == "ca8175fd7504adecb7e6c2e44a52e93a810a9199fc8963858e55a5c0438a7ca6"


def test_a_fingerprint_is_computed_once_until_other_weights_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder()
    own = encoder.fingerprint()
    monkeypatch.setattr(
        "reconx_pl.diffusion.conditioning.frozen.fingerprint", lambda *args: pytest.fail("hashed again")
    )
    assert encoder.bfloat16().fingerprint() == own
    monkeypatch.undo()
    outer = nn.ModuleDict({"inner": encoder.float()})
    outer.load_state_dict(nn.ModuleDict({"inner": Encoder(2.0)}).state_dict())
    assert encoder.fingerprint() == Encoder(2.0).fingerprint()


def test_outputs_are_remembered_and_the_oldest_forgotten() -> None:
    encoder = Encoder()
    encoder.remembered = 2
    for number in (1.0, 2.0, 1.0, 3.0, 1.0):  # 2 is the least recently used when 3 comes
        assert torch.equal(encoder.of(number), torch.full((1, 2), 2 * number))
    assert encoder.calls == 3
    encoder.of(2.0)
    assert encoder.calls == 4


def test_loading_or_converting_forgets_the_outputs() -> None:
    encoder = Encoder()
    encoder.of(1.0)
    nn.ModuleDict({"inner": encoder}).load_state_dict(nn.ModuleDict({"inner": Encoder(3.0)}).state_dict())
    assert torch.equal(encoder.of(1.0), torch.full((1, 2), 6.0))
    nn.ModuleDict({"inner": encoder}).double()
    assert encoder.recall(1.0, lambda: torch.zeros(1, dtype=torch.float64)).dtype == torch.float64


def test_what_was_first_asked_in_inference_mode_is_good_for_training() -> None:
    encoder = Encoder()
    with torch.inference_mode():
        assert not encoder.of(1.0).is_inference()
    weight = torch.ones(2, 2, requires_grad=True)
    (encoder.of(1.0) @ weight).sum().backward()  # the output is saved for this
    assert encoder.calls == 1 and torch.equal(weight.grad, torch.full((2, 2), 2.0))


def test_autocast_has_a_memory_of_its_own() -> None:
    encoder = Encoder()
    with torch.autocast("cpu", torch.bfloat16):
        assert encoder.of(1.0).dtype == torch.bfloat16
    assert encoder.of(1.0).dtype == torch.float32


def test_the_text_encoder_runs_once_for_a_caption(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = ClipTextTokens(TEXT, random_init=True)
    seen: list[int] = []
    encode = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda tokens: seen.append(len(tokens)) or encode(tokens))
    first = encoder(["a room", "", "a room"])
    assert seen == [1, 1] and torch.equal(first[0], first[2])
    # one by one: what stands beside a caption does not change its tokens, not even in rounding
    assert torch.equal(encoder(["a room"]), first[:1]) and torch.equal(encoder.null(), first[1:2])
    assert seen == [1, 1] and not first.requires_grad


def test_the_image_encoder_runs_once_for_the_grey_image(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = ClipImageTokens(VISION, RESAMPLER, random_init=True)
    images = torch.rand(3, 3, 70, 90)
    dropped = torch.tensor([False, True, False])
    grey = torch.where(dropped.view(3, 1, 1, 1), torch.full_like(images, 0.5), images)
    expected, features = model(grey), model.encoder(images)
    model.null(images)
    monkeypatch.setattr(model.encoder, "forward", lambda images: pytest.fail("the encoder ran"))
    torch.testing.assert_close(model.project(features, dropped), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(model.null(images), expected[1:2], atol=1e-5, rtol=0)
    # remembered are the encoder's tokens, the trainable resampler runs anew
    model.null(images).sum().backward()
    assert model.resampler.proj_in.weight.grad is not None


def test_no_frozen_part_keeps_anything_for_a_backward_pass() -> None:
    model, vae = ClipImageTokens(VISION, RESAMPLER, random_init=True), KLAutoencoder(VAE, random_init=True)
    text = ClipTextTokens(TEXT, random_init=True)
    images = torch.rand(1, 3, 56, 56).requires_grad_()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        outputs = [model.encoder(images), vae.moments(images), text(["a"])]
        assert not kept and not any(output.requires_grad or output.is_inference() for output in outputs)
        model.resampler(outputs[0])
    assert kept  # the count counts
