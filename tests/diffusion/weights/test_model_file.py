"""A whole model in one file: what goes in comes out, by its path and by its name; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from released_checkpoints import tiny
from safetensors import safe_open
from safetensors.torch import save_file

from reconx_pl.cli.main import main
from reconx_pl.diffusion.model import ReconXDiffusion
from reconx_pl.diffusion.sampling.config import SamplingConfig
from reconx_pl.diffusion.weights.generation import ClipDefaults, GenerationDefaults
from reconx_pl.diffusion.weights.model_file import is_model_file, load_model_file, write_model_file
from reconx_pl.errors import BadWeightsError, MissingWeightsError
from reconx_pl.files import weights as weight_files
from reconx_pl.files.weights import read_tensors
from reconx_pl.training.models import find_model

HOW = GenerationDefaults(clip=ClipDefaults(4, 32, 48, 8.0), sampling=SamplingConfig(num_inference_steps=1))


@pytest.fixture(scope="module")
def network() -> ReconXDiffusion:
    return tiny(4, seed=3)


@pytest.fixture(scope="module")
def file(network: ReconXDiffusion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    write_model_file(network, HOW, path)
    return path


def test_the_file_holds_half_precision_and_the_network_computes_in_float32(
    network: ReconXDiffusion, file: Path
) -> None:
    with safe_open(file, framework="pt") as stored:
        kinds = {stored.get_tensor(name).dtype for name in stored.keys()}  # noqa: SIM118 (no mapping)
    assert torch.float16 in kinds and torch.float32 not in kinds
    loaded, wanted = load_model_file(file).state_dict(), network.state_dict()
    assert loaded.keys() == wanted.keys()
    for name, tensor in wanted.items():
        half = tensor.half().float() if tensor.is_floating_point() else tensor
        assert loaded[name].dtype != torch.float16 and torch.equal(loaded[name].float(), half.float()), name


def test_it_is_found_by_its_path_with_its_settings(file: Path) -> None:
    found = find_model(file)
    assert (found.kind, found.defaults) == ("file", HOW)
    assert found.identity(found.sampling).startswith("weights ") and not found.follows_cameras
    pipeline = found.load()
    assert pipeline.config == HOW.sampling and not pipeline.network.training


def test_a_shipped_model_is_found_by_its_name_but_a_path_of_that_name_comes_first(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(weight_files, "SHIPPED", {"small": file})
    assert find_model("small").weights == file
    assert ReconXDiffusion.from_pretrained("small").structure_encoder is not None
    assert read_tensors("small").keys() == read_tensors(file).keys(), "a stage starts from it: model.init_from"
    tiny(4, seed=4, structure=False).save_pretrained(tmp_path / "small")
    assert ReconXDiffusion.from_pretrained("small").structure_encoder is None


@pytest.mark.parametrize(
    ("network", "says"),
    [("[1]", "does not say which network"), ("{", "does not say which network"), ("{}", "expected class_path")],
)
def test_a_header_of_another_form_is_refused(network: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    save_file({"a": torch.zeros(1)}, path, {"network": network})
    with pytest.raises(BadWeightsError, match=says) as caught:
        load_model_file(path)
    assert str(path) in str(caught.value)


def test_a_header_that_names_a_foreign_class_builds_nothing(file: Path, tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    described = {"class_path": "os.system", "init_args": {"command": "touch made"}}
    save_file({"a": torch.zeros(1)}, path, {"network": json.dumps(described)})
    with pytest.raises(BadWeightsError, match="os.system"):
        load_model_file(path)
    save_file({"a": torch.zeros(1)}, path, {"network": "{}", "generation": '{"clip": {"rows": 3}}'})
    with pytest.raises(BadWeightsError, match="does not say how the model generates"):
        _ = find_model(path).defaults


def test_what_is_no_model_file(file: Path, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "tensors.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(file.read_bytes()[:99])
    assert is_model_file(file)
    for name in ("tensors.safetensors", "cut.safetensors", "absent.safetensors"):
        assert not is_model_file(tmp_path / name), name
    with pytest.raises(MissingWeightsError, match="neither the folder of a training run"):
        find_model(tmp_path / "tensors.safetensors")


def test_the_command_writes_what_the_model_option_takes(
    network: ReconXDiffusion, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network.save_pretrained(tmp_path / "folder")
    out = tmp_path / "one.safetensors"
    main(["weights", "export", str(tmp_path / "folder"), str(out)])
    assert find_model(out).kind == "file" and read_tensors(out).keys() == network.state_dict().keys()
    digest = (tmp_path / "one.safetensors.sha256").read_text().split()[0]
    main(["weights", "verify", str(out)])
    assert digest[:12] in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"ends in \.safetensors"):
        main(["weights", "export", str(tmp_path / "folder"), str(tmp_path / "one.pt")])
