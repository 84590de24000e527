"""A folder of ours: written, read back without memory or network, and unable to build what is not ours."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml
from released_checkpoints import released, tiny
from safetensors.torch import load_file

from reconx_pl.cli.main import main
from reconx_pl.diffusion import model
from reconx_pl.diffusion.autoencoder import KLAutoencoder, PixelUnshuffleAutoencoder
from reconx_pl.diffusion.conditioning.image_tokens import ClipVisionEncoder, SmallImageConfig, SmallImageTokens
from reconx_pl.diffusion.conditioning.text_tokens import ClipTextTokens, LearnedTextTokens
from reconx_pl.diffusion.config import UNetConfig
from reconx_pl.diffusion.model import ReconXDiffusion
from reconx_pl.diffusion.sampling.schedule import ScheduleConfig
from reconx_pl.diffusion.weights import load_network, pretrained
from reconx_pl.diffusion.weights.building import build_network, network_config
from reconx_pl.diffusion.weights.generation import read_generation
from reconx_pl.diffusion.weights.releases import RELEASES, release_config, release_defaults
from reconx_pl.diffusion.weights.writing import write_safetensors
from reconx_pl.errors import BadWeightsError, ConfigurationError, MissingWeightsError
from reconx_pl.files.checksums import read_sums
from reconx_pl.files.weights import read_tensors


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Nothing here may ask the hub; what does is recorded and fails."""
    asked: list[str] = []

    def refuse(name: str, **options: Any) -> str:
        asked.append(name)
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    return asked


def test_a_folder_round_trip(tmp_path: Path, no_hub: list[str]) -> None:
    source = tiny(4, seed=1, schedule=ScheduleConfig(rescale_end=0.3)).eval()
    torch.nn.init.constant_(source.unet.middle_block[1].transformer_blocks[0].attn2.structure_gate, 0.5)
    source.save_pretrained(tmp_path / "net")
    written = {path.name for path in (tmp_path / "net").iterdir()}
    assert written == {"model.safetensors", "config.json", "README.md", "SHA256SUMS"}
    again = ReconXDiffusion.from_pretrained(tmp_path / "net")
    assert not again.training and no_hub == []
    assert network_config(again) == network_config(source)
    assert again.schedule.config.rescale_end == 0.3
    for name, tensor in source.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    trainable = {name for name, parameter in again.named_parameters() if parameter.requires_grad}
    assert trainable == {name for name, parameter in source.named_parameters() if parameter.requires_grad}
    views, points = torch.rand(1, 2, 3, 32, 32), torch.rand(1, 16, 3) + 1
    results = []
    for network in (source, again):
        full = network.condition_sets(views, torch.tensor([8.0]), 4, points, ["a room"]).full
        noise = torch.linspace(-1, 1, full.concat_latents.numel()).view_as(full.concat_latents)
        with torch.no_grad():
            results.append(network(noise, torch.tensor([500]), full))
    assert torch.equal(*results)


def test_a_folder_of_an_earlier_version(tmp_path: Path) -> None:
    source = tiny(4, seed=1)
    source.save_pretrained(tmp_path)
    renamed = {
        name.replace("image_tokens.encoder.", "image_tokens.tower."): tensor
        for name, tensor in load_file(tmp_path / "model.safetensors").items()
    }
    assert sum(name.startswith("image_tokens.tower.visual.") for name in renamed) > 10
    write_safetensors(renamed, tmp_path / "model.safetensors")
    text = (tmp_path / "config.json").read_text()
    assert text.count("reconx_pl.diffusion.conditioning.") == 2
    (tmp_path / "config.json").write_text(text.replace("reconx_pl.diffusion.conditioning.", "reconx_pl.conditioning."))
    again = ReconXDiffusion.from_pretrained(tmp_path)
    for name, tensor in source.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    image = ClipVisionEncoder(source.image_tokens.encoder.config, tmp_path)
    assert torch.equal(image.visual.conv1.weight, source.image_tokens.encoder.visual.conv1.weight)


def test_other_parts_describe_themselves_too() -> None:
    source = ReconXDiffusion(
        UNetConfig(in_channels=24, out_channels=12, model_channels=64, channel_mult=(1,), num_res_blocks=1,
                   attention_strides=(1,), context_dim=32, structure_guidance=False),
        PixelUnshuffleAutoencoder(2, 1.5),
        SmallImageTokens(SmallImageConfig(frames=3, width=32, image_size=32, heads=1, resampler_width=32)),
        LearnedTextTokens(5, 32),
    )  # fmt: skip
    described = json.loads(json.dumps(network_config(source)))
    again = build_network(described, "config.json")
    assert network_config(again) == network_config(source)
    shapes = {name: tensor.shape for name, tensor in source.state_dict().items()}
    assert {name: tensor.shape for name, tensor in again.state_dict().items()} == shapes
    assert all(tensor.is_meta for tensor in again.state_dict().values())
    source.autoencoder = torch.nn.Identity()
    with pytest.raises(ConfigurationError, match="autoencoder.*init_args"):
        network_config(source)


def convert_tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> Path:
    """``reconx weights convert`` on a checkpoint of 16 frames, with a release of the tiny sizes."""

    def config(name: str, frames: int | None) -> dict[str, Any]:
        assert name == "dynamicrafter-512-interp"
        return network_config(tiny(frames or 32, seed=0))

    monkeypatch.setattr(pretrained, "release_config", config)
    torch.save({"state_dict": released(tiny(16, seed=1))}, tmp_path / "model.ckpt")
    out = tmp_path / "net"
    arguments = [str(tmp_path / "model.ckpt"), str(out), "--release", "dynamicrafter-512-interp"]
    main(["weights", "convert", *arguments, *options])
    return out


def test_convert_and_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    out = convert_tiny(tmp_path, monkeypatch)
    source = tiny(16, seed=1)
    stored = load_file(out / "model.safetensors")
    assert stored.keys() == {name for name in source.state_dict() if "structure" not in name}
    with caplog.at_level(logging.INFO):
        torch.manual_seed(5)
        network = ReconXDiffusion.from_pretrained(out)
    assert any("no structure branch" in record.getMessage() for record in caplog.records)
    assert network.image_tokens.resampler.latents.shape == (1, 512, 32)
    for name, tensor in network.state_dict().items():
        assert not tensor.is_meta
        if "structure" not in name and name != "image_tokens.resampler.latents":
            assert torch.equal(tensor, source.state_dict()[name]), name
    # the structure branch is born as it would be on a real device
    for name, tensor in network.named_parameters():
        if name.endswith("structure_gate"):
            assert tensor.eq(0).all() and tensor.requires_grad
        elif name.endswith(("to_k_structure.weight", "to_v_structure.weight")):
            assert 0.9 / 32**0.5 < tensor.abs().max() <= 1 / 32**0.5 and tensor.requires_grad
    torch.manual_seed(5)
    encoder = type(network.structure_encoder)(network.structure_encoder.config)  # type: ignore[union-attr]
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(network.structure_encoder.state_dict()[name], tensor)  # type: ignore[union-attr]


def test_convert_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = convert_tiny(tmp_path, monkeypatch, "--frames", "24", "--queries", "repeat", "--dtype", "bf16")
    source = tiny(16, seed=1)
    stored = load_file(out / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    before = source.image_tokens.resampler.latents[0].unflatten(0, (16, 16))
    after = stored["image_tokens.resampler.latents"][0].unflatten(0, (24, 16))
    assert torch.equal(after[23], before[15].bfloat16()) and torch.equal(after[1], before[0].bfloat16())
    network = ReconXDiffusion.from_pretrained(out)
    assert {tensor.dtype for tensor in network.state_dict().values()} == {torch.bfloat16}
    assert network.schedule.alphas_cumprod.dtype == torch.float32
    assert ReconXDiffusion.from_pretrained(out, dtype=torch.float32).unet.out[2].weight.dtype == torch.float32
    with pytest.raises(SystemExit):
        main(["weights", "convert", str(tmp_path / "model.ckpt"), str(out)])  # which release it is has to be said


def test_a_release_that_is_guided_by_renders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries that all frames share stay as they are, nothing is born, and the folder says how it generates."""
    name = "viewcrafter-25-sparse"
    source = tiny(16, seed=1, structure=False, schedule=ScheduleConfig(rescale_end=0.3))

    def config(name: str, frames: int | None) -> dict[str, Any]:
        real, described = release_config(name, frames)["init_args"], network_config(source)
        described["init_args"] |= {key: real[key] for key in ("guidance", "render", "caption", "captions")}
        described["init_args"]["image_tokens"]["init_args"]["shared"] = real["image_tokens"]["init_args"]["shared"]
        return described

    monkeypatch.setattr(pretrained, "release_config", config)
    torch.save({"state_dict": released(source)}, tmp_path / "model.ckpt")
    arguments = ["weights", "convert", str(tmp_path / "model.ckpt"), str(tmp_path / "net"), "--release", name]
    with pytest.raises(SystemExit, match="leave frames out"):
        main([*arguments, "--frames", "32"])
    main(arguments)
    sums = read_sums(tmp_path / "net" / "SHA256SUMS")
    assert sums.keys() == {"config.json", "generation.json", "model.safetensors"}
    assert read_generation(tmp_path / "net") == release_defaults(name)
    network = ReconXDiffusion.from_pretrained(tmp_path / "net")
    assert network.state_dict().keys() == source.state_dict().keys() and network.guidance == "render"
    assert torch.equal(network.image_tokens.resampler.latents, source.image_tokens.resampler.latents)
    sets = network.condition_sets(torch.rand(1, 2, 3, 32, 32), torch.tensor([10.0]), 5, captions=["of no clip"])
    assert sets.full.image_tokens.shape == (1, 256, 32), "five frames of sixteen queries"
    assert torch.equal(sets.full.text_tokens, network.text_tokens(["Rotating view of a scene"]))
    card = (tmp_path / "net" / "README.md").read_text()
    assert "guided by renders" in card and "of a clip of 25 sees the tokens of all" in card and "closed" not in card
    assert "which was not read here" in card and "LICENSE" not in card
    network.save_pretrained(tmp_path / "net")
    assert not (tmp_path / "net" / "generation.json").exists(), "another network may generate otherwise"


def test_the_card_says_what_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = (convert_tiny(tmp_path, monkeypatch, "--dtype", "16") / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["base_model"] == "Doubiiu/DynamiCrafter_512_Interp" and front["pipeline_tag"] == "image-to-video"
    assert front["license"] == "other" and front["license_link"].startswith("https://huggingface.co/Doubiiu/")
    assert "from_pretrained" in card and "Not measured here" in card and "float16" in card
    assert "320 x 512" in card and "32 frames" in card and "16, which were adapted" in card


def test_the_folder_stands_wherever_a_file_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = convert_tiny(tmp_path, monkeypatch)
    source, target = tiny(16, seed=1), tiny(32, seed=2)
    load_network(target, out)
    assert torch.equal(target.unet.out[2].weight, source.unet.out[2].weight)
    vae = KLAutoencoder(source.autoencoder.config, out)
    assert torch.equal(vae.vae.decoder.conv_in.weight, source.autoencoder.vae.decoder.conv_in.weight)
    image = ClipVisionEncoder(source.image_tokens.encoder.config, out)
    assert torch.equal(image.visual.conv1.weight, source.image_tokens.encoder.visual.conv1.weight)
    text = ClipTextTokens(source.text_tokens.config, out)
    assert torch.equal(text.text.ln_final.weight, source.text_tokens.text.ln_final.weight)


def test_a_class_of_others_under_a_name_of_ours_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "Borrowed", torch.nn.Linear, raising=False)
    config = network_config(tiny(4, seed=1))
    config["init_args"]["autoencoder"] = {"class_path": "reconx_pl.diffusion.model.Borrowed", "init_args": {}}
    with pytest.raises(BadWeightsError, match="and nothing else"):
        ReconXDiffusion.from_pretrained(write_config(tmp_path, config))


def write_config(folder: Path, config: Any) -> Path:
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return folder


FOREIGN = [
    "os.system",
    "torch.nn.Linear",
    "reconx_pl.cli.main.subprocess",
    "reconx_pl.diffusion.model.nn.Linear",
    "reconx_pl.diffusion.model.torch",
    "reconx_pl.diffusion.model.nn",
    "reconx_pl.diffusion.weights.pretrained.convert",
    "reconx_pl.data.datamodule.ShardDataModule",
    "Linear",
    None,
]


@pytest.mark.parametrize("path", FOREIGN)
@pytest.mark.parametrize("part", ["network", "autoencoder", "schedule"])
def test_a_config_builds_nothing_from_outside(part: str, path: Any, tmp_path: Path) -> None:
    config = network_config(tiny(4, seed=1))
    if part == "network":
        config["class_path"] = path
    else:
        config["init_args"][part] = {"class_path": path, "init_args": {}}
    with pytest.raises(BadWeightsError, match=r"config\.json.*class_path.*and nothing else"):
        ReconXDiffusion.from_pretrained(write_config(tmp_path, config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"autoencoder": "torch.nn.Identity"}, "no paths and no expressions"),
        ({"autoencoder": "Identity"}, "expected class_path and init_args"),
        ({"text_tokens": {"class_path": "reconx_pl.diffusion.conditioning.text_tokens.ClipTextTokens",
                          "init_args": {"weights": "/etc/passwd"}}}, "no paths"),
        ({"unet": {"novel": 1}}, "does not describe a network"),
        ({"unet": {"model_channels": 33}}, "does not describe a network"),
        ({"image_tokens": None}, "expected class_path and init_args"),
    ],
)  # fmt: skip
def test_a_config_that_does_not_build(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    config = network_config(tiny(4, seed=1))
    config["init_args"] |= change
    with pytest.raises(BadWeightsError, match=r"config\.json.*" + message):
        ReconXDiffusion.from_pretrained(write_config(tmp_path, config))


@pytest.mark.parametrize("text", ["{", "[1]", "{}"])
def test_a_config_that_is_none(text: str, tmp_path: Path) -> None:
    with pytest.raises(BadWeightsError, match=r"config\.json"):
        ReconXDiffusion.from_pretrained(write_config(tmp_path, text))


def test_a_folder_whose_weights_do_not_fit(tmp_path: Path) -> None:
    tiny(4, seed=1).save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["unet.out.2.bias"], state["autoencoder.vae.quant_conv.bias"]
    write_safetensors(state, tmp_path / "model.safetensors")
    with pytest.raises(BadWeightsError, match="2 missing: autoencoder.vae.quant_conv.bias, unet.out.2.bias"):
        ReconXDiffusion.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(MissingWeightsError, match="model.safetensors"):
        ReconXDiffusion.from_pretrained(tmp_path)


def test_the_hub_is_asked_only_for_names(tmp_path: Path, no_hub: list[str]) -> None:
    for place in (tmp_path / "absent", str(tmp_path / "absent"), "./absent", "absent", __file__):
        with pytest.raises(MissingWeightsError, match="neither a folder nor"):
            ReconXDiffusion.from_pretrained(place)
    assert no_hub == []
    with pytest.raises(MissingWeightsError, match="HF_ENDPOINT"):
        ReconXDiffusion.from_pretrained("owner/name")
    assert no_hub == ["owner/name"]


def test_writing_is_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    tensors = {"a": torch.arange(6.0).view(2, 3).T, "b": torch.tensor(3), "c": torch.ones(()), "d": torch.ones(0, 4)}
    write_safetensors(tensors, path, torch.float16)
    stored = load_file(path)
    assert stored.keys() == tensors.keys() and stored["a"].dtype == torch.float16
    assert torch.equal(stored["a"].float(), tensors["a"]) and stored["b"].dtype == torch.int64 and stored["b"] == 3
    assert stored["d"].shape == (0, 4)
    before = path.read_bytes()
    with pytest.raises(RuntimeError):
        write_safetensors({"a": torch.ones(2), "b": torch.ones(2, device="meta")}, path)
    with pytest.raises(BadWeightsError, match="complex64"):
        write_safetensors({"a": torch.ones(2, dtype=torch.complex64)}, path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_mapped_tensors_are_aligned_whatever_stands_before_them(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_safetensors({"odd": torch.ones(3), "a": torch.ones(16), "odd2": torch.ones(1), "b": torch.ones(5, 32)}, path)
    read = read_tensors(path)
    assert all(read[name].data_ptr() % 64 == 0 and read[name].eq(1).all() for name in ("a", "b"))


@pytest.mark.parametrize("name", RELEASES)
def test_every_release_builds(name: str) -> None:
    network = build_network(json.loads(json.dumps(release_config(name))), name)
    assert network.schedule.config.rescale_end == (0.7 if "512" in name else 0.3)
    rendered = name.startswith("viewcrafter")
    assert network.image_tokens.resampler.latents.shape == (1, 256 if rendered else 512, 1024)
    assert (network.guidance, network.structure_encoder is None) == (
        ("render", True) if rendered else ("structure", False)
    )
    assert (network.captions, network.caption) == (("fixed", "Rotating view of a scene") if rendered else ("clip", ""))
    if rendered:
        assert network.render == RELEASES[name].render and network.image_tokens.shared
        assert network.unet.config.in_channels == 8 and not network.unet.config.structure_guidance
