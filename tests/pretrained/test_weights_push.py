"""Weights sent to a stand-in of the hub: what arrives loads again, and what must not leave does not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from hub_stand_in import Hub, serve
from huggingface_hub import constants
from jsonargparse import ArgumentParser
from released_checkpoints import tiny
from safetensors.torch import save_file
from tiny_run import tiny_config

from reconx_pl.cli.main import main
from reconx_pl.diffusion.model import ReconXDiffusion
from reconx_pl.diffusion.weights.card import model_card, run_card, with_licence
from reconx_pl.diffusion.weights.generation import ClipDefaults, GenerationDefaults
from reconx_pl.diffusion.weights.releases import RELEASES, release_defaults
from reconx_pl.errors import BadWeightsError, ConfigurationError, MissingWeightsError, PublishingError
from reconx_pl.files.checksums import SUMS, read_sums
from reconx_pl.pretrained.push import prepare, push
from reconx_pl.training.checkpointing.network_weights import own_weights, save_network
from reconx_pl.training.module import ReconXModule
from reconx_pl.training.runs import load_run

NAME = "owner/network"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the stand-in speaks git LFS
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
    with serve(Hub(b"", writers={"Bearer hf_of_a_test"})) as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.endpoint)
        yield served


@pytest.fixture(scope="module")
def network() -> ReconXDiffusion:
    return tiny(4, seed=1).eval()


@pytest.fixture
def folder(network: ReconXDiffusion, tmp_path: Path) -> Path:
    network.save_pretrained(tmp_path / "net")
    (tmp_path / "net" / "optimizer.ckpt").write_bytes(b"not for everybody")
    return tmp_path / "net"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """What ``ExportWeights`` and ``RunConfig`` leave in the folder of a run, with a checkpoint beside."""
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.ckpt").write_bytes(b"optimizer")
    facts = {"stage": "image_attention", "step": "2000", "average": "True"}
    save_file({"unet.weight": torch.ones(3)}, folder / "weights.safetensors", facts)
    model = {"stage": "image_attention", "init_from": "/home/ada/base.ckpt", "network": {"weights": ["a", "/data/t"]}}
    config = {"data": {"train": "/home/ada/secret"}, "model": model}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "generation.json").write_text(GenerationDefaults(clip=ClipDefaults(8, 64, 64, 8.0)).text())
    return folder


def received(hub: Hub, branch: str = "main") -> dict[str, bytes]:
    return hub.repositories[NAME].files[branch]


def written(files: dict[str, bytes], folder: Path) -> Path:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def test_a_pushed_folder_loads_again(hub: Hub, folder: Path, network: ReconXDiffusion, tmp_path: Path) -> None:
    main(["weights", "push", str(folder), NAME, "--licence", "cc-by-4.0", "--message", "first"])
    assert hub.repositories[NAME].private and hub.repositories[NAME].messages == ["first"]
    files = received(hub)
    assert set(files) == {"config.json", "model.safetensors", "README.md", SUMS}
    there = written(files, tmp_path / "there")
    again = ReconXDiffusion.from_pretrained(there)
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in network.state_dict().items())
    for name, digest in read_sums(there / SUMS).items():
        assert hashlib.sha256(files[name]).hexdigest() == digest
    card = files["README.md"].decode()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["license"] == "cc-by-4.0" and "license_name" not in front and "video-diffusion" in front["tags"]
    assert "whoever publishes them states `cc-by-4.0`" in card and "before you publish" not in card
    assert "before you publish" in (folder / "README.md").read_text()  # the user's own file stays


def test_what_a_release_generates_is_sent_with_it(folder: Path) -> None:
    (folder / "generation.json").write_text(release_defaults("viewcrafter-25").text())
    shipment = prepare(folder, "cc-by-4.0")
    assert shipment.files["generation.json"] == folder / "generation.json"
    assert "generation.json" in bytes(shipment.files[SUMS]).decode()
    (folder / "generation.json").write_text("{")
    with pytest.raises(BadWeightsError, match=r"generation\.json"):
        prepare(folder, "cc-by-4.0")


def test_a_pushed_run_keeps_to_the_model(hub: Hub, run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    main(["weights", "push", str(run), NAME, "--licence", "apache-2.0", "--public"])
    assert not hub.repositories[NAME].private
    files = received(hub)
    assert set(files) == {"config.yaml", "weights.safetensors", "generation.json", "README.md", SUMS}
    assert files["weights.safetensors"] == (run / "weights.safetensors").read_bytes()
    config = yaml.safe_load(files["config.yaml"])
    assert config == {"model": yaml.safe_load((run / "config.yaml").read_text())["model"]}
    assert b"secret" not in b"".join(files.values()) and b"optimizer" not in b"".join(files.values())
    said = " ".join(capfd.readouterr().err.split())
    assert "config.yaml names paths of this machine: /data/t, /home/ada/base.ckpt" in said
    assert "stage `image_attention`, step 2000, moving average" in files["README.md"].decode()


def test_a_pushed_run_is_a_run_for_evaluation(hub: Hub, tmp_path: Path) -> None:
    path = tiny_config(tmp_path, tmp_path / "shards", "stage2", steps=1, checkpoint_every=1)
    source = tmp_path / "stage2"
    source.mkdir()
    path.rename(source / "config.yaml")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ReconXModule, "model")
    config = yaml.safe_load((source / "config.yaml").read_text())
    torch.manual_seed(3)
    trained: ReconXModule = parser.instantiate_classes(parser.parse_object({"model": config["model"]})).model
    save_network(trained.network, source / "weights.safetensors", {"stage": "x"})
    main(["weights", "push", str(source), NAME, "--licence", "mit"])
    again = own_weights(load_run(written(received(hub), tmp_path / "there")).network)
    for name, tensor in own_weights(trained.network).items():
        assert torch.equal(again[name], tensor), name


def test_a_dry_run_sends_nothing(hub: Hub, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    main(["weights", "push", str(folder), NAME, "--licence", "cc-by-4.0", "--dry_run"])
    assert hub.requests == [] and hub.repositories == {}
    said = capfd.readouterr().err
    assert "model.safetensors" in said and "dry run" in said and "optimizer" not in said


def test_a_second_push_sends_no_weights_again(hub: Hub, folder: Path) -> None:
    shipment = prepare(folder, "cc-by-4.0")
    assert push(shipment, NAME, endpoint=hub.endpoint).endswith(f"{NAME}/commit/{'c' * 40}")
    push(shipment, NAME, revision="bf16", endpoint=hub.endpoint)
    assert [method for method, _ in hub.requests].count("PUT") == 1
    assert received(hub, "bf16") == received(hub)


def test_a_broken_upload_commits_nothing(hub: Hub, folder: Path) -> None:
    hub.refuse_uploads = 1
    shipment = prepare(folder, "cc-by-4.0")
    with pytest.raises(PublishingError, match=r"connection broke .*model\.safetensors.*403.*run the same"):
        push(shipment, NAME, endpoint=hub.endpoint)
    assert received(hub) == {}
    push(shipment, NAME, endpoint=hub.endpoint)
    assert "model.safetensors" in received(hub)


def test_no_token_and_a_wrong_one(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipment = prepare(folder, "cc-by-4.0")
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    with pytest.raises(PublishingError, match=r"\(403\).*HF_TOKEN.*settings/tokens"):
        push(shipment, NAME, endpoint=hub.endpoint)
    monkeypatch.delenv("HF_TOKEN")
    hub.requests.clear()
    with pytest.raises(ConfigurationError, match="hf auth login.*HF_TOKEN"):
        push(shipment, NAME, endpoint=hub.endpoint)
    assert hub.requests == []


def test_without_network(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipment = prepare(folder, "cc-by-4.0")
    with pytest.raises(PublishingError, match=r"cannot be reached.*HF_HUB_OFFLINE.*HF_ENDPOINT"):
        push(shipment, NAME, endpoint="http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(PublishingError, match="offline mode is enabled"):
        push(shipment, NAME, endpoint=hub.endpoint)
    assert hub.requests == []


def test_private_weights_do_not_go_to_a_public_place(hub: Hub, folder: Path) -> None:
    shipment = prepare(folder, "cc-by-4.0")
    push(shipment, NAME, public=True, endpoint=hub.endpoint)
    received(hub).clear()
    with pytest.raises(ConfigurationError, match="everybody can see it: say --public"):
        push(shipment, NAME, endpoint=hub.endpoint)
    assert received(hub) == {}


def test_what_is_not_whole_is_not_sent(folder: Path, run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="--licence"):
        prepare(folder)
    with pytest.raises(ConfigurationError, match="--licence"):
        prepare(run)
    with pytest.raises(ConfigurationError, match="tag of the hub"):
        prepare(folder, "do what\nyou: like")
    described = (folder / "config.json").read_text()
    (folder / "config.json").write_text(described + " ")
    with pytest.raises(BadWeightsError, match=r"config\.json has sha256.*convert the checkpoint again"):
        prepare(folder, "cc-by-4.0")
    (folder / SUMS).unlink()  # a folder of an earlier version has no list
    assert prepare(folder, "cc-by-4.0").bytes_of("config.json") == len(described) + 1
    config = json.loads(described)
    config["init_args"]["unet"]["model_channels"] = 128
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadWeightsError, match="of another shape"):
        prepare(folder, "cc-by-4.0")
    (run / "config.yaml").write_text("trainer: {}")
    with pytest.raises(BadWeightsError, match=r"config\.yaml: no configuration of a run"):
        prepare(run / "weights.safetensors", "cc-by-4.0")
    (run / "config.yaml").unlink()
    with pytest.raises(MissingWeightsError, match=r"config\.yaml is missing"):
        prepare(run, "cc-by-4.0")
    with pytest.raises(MissingWeightsError, match="reconx weights convert"):
        prepare(tmp_path / "nowhere", "cc-by-4.0")
    with pytest.raises(BadWeightsError, match="reconx consolidate"):
        prepare(run / "checkpoints" / "last.ckpt", "cc-by-4.0")


@pytest.mark.parametrize("name", ["network", "owner/name/more", "https://huggingface.co/a/b", "-a/b", ""])
def test_a_repository_has_an_owner(name: str, folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="owner/name"):
        push(prepare(folder, "cc-by-4.0"), name)


def test_a_card_that_states_a_licence_is_kept() -> None:
    converted = model_card(RELEASES["viewcrafter-25"], 16, "32")
    assert with_licence(converted, None, "card") == (converted, "apache-2.0")
    with pytest.raises(ConfigurationError, match="states the licence apache-2.0, not mit"):
        with_licence(converted, "mit", "card")
    unread = model_card(RELEASES["dynamicrafter-512"], 32, "32")
    assert with_licence(unread, None, "card") == (unread, "that-of-the-base-model")
    assert with_licence("# Mine\n", "mit", "card") == ("---\nlicense: mit\n---\n# Mine\n", "mit")
    with pytest.raises(ConfigurationError, match="no licence is stated"):
        with_licence(run_card({}, None), None, "card")
