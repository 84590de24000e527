"""The kits of the repository: small, complete, and the numbers of the whole collection unchanged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_kits import OWN, REPOSITORY, SHARED, Held, described, read_kit, weights_file
from golden_weights import STORED, checksum, complete_kits, drawn_weights, lacks_weights
from safetensors.torch import load_file, save_file

from reconx_pl.diffusion.conditioning.conditions import Conditions
from reconx_pl.diffusion.conditioning.resampler import Resampler, ResamplerConfig
from reconx_pl.diffusion.sampling.ddim import DDIMSampler
from reconx_pl.diffusion.sampling.guidance import ConditionSets, Guidance
from reconx_pl.diffusion.sampling.schedule import NoiseSchedule

WHOLE = SHARED / "golden"
ADDED = ("drawn", "left_out")
KITS = sorted(OWN.glob("*.json"))
DRAWN = [kit for kit in KITS if kit.with_name(f"{kit.stem}{STORED}").exists()]
each_kit = pytest.mark.parametrize("kit", KITS, ids=lambda kit: kit.stem)


def test_the_folder_is_small_and_described() -> None:
    complete_kits(OWN)
    made = {kit.with_suffix(".safetensors") for kit in DRAWN}
    files = [path for path in OWN.iterdir() if path not in made]
    assert sum(path.stat().st_size for path in files) <= 5_000_000
    readme = (OWN / "README.md").read_text()
    assert [kit.stem for kit in KITS if f"`{kit.stem.removesuffix('.info')}`" not in readme] == []
    assert DRAWN and {path.suffix for path in files} == {".json", ".safetensors", ".npz", ".md"}


@each_kit
def test_a_kit_says_what_the_whole_one_says(kit: Path) -> None:
    if not (WHOLE / kit.name).is_file():
        pytest.skip(f"needs the whole collection in {WHOLE}")
    own = described(kit)
    assert {key: value for key, value in own.items() if key not in ADDED} == described(WHOLE / kit.name)
    complete_kits(OWN)
    tensors = kit.with_suffix(".safetensors")
    if tensors.exists():
        found, whole = load_file(tensors), load_file(WHOLE / tensors.name)
        assert whole.keys() - found.keys() == set(own.get("left_out", []))
        assert all(torch.equal(value, whole[name]) for name, value in found.items())
    if (arrays := kit.with_suffix(".npz")).exists():
        with np.load(arrays) as found, np.load(WHOLE / arrays.name) as whole:
            assert found.files == whole.files and all(np.array_equal(found[name], whole[name]) for name in found.files)


def test_weights_that_this_torch_draws_otherwise_are_not_written(tmp_path: Path) -> None:
    description = {"tensors": {"a.weight": {"shape": [3]}}, "drawn": {"parts": [{"seed": 1, "order": ["a."]}]}}
    kit = tmp_path / "small.json"
    save_file({"io.x": torch.zeros(1)}, tmp_path / f"small{STORED}")
    for sha256, lacking in (("0" * 64, True), (checksum(drawn_weights(description)), False)):
        description["drawn"]["sha256"] = sha256
        kit.write_text(json.dumps(description))
        with warnings.catch_warnings(record=True) as caught:
            complete_kits(tmp_path)
        assert lacks_weights(kit) is lacking and bool(caught) is lacking
    assert load_file(kit.with_suffix(".safetensors")).keys() == {"a.weight", "io.x"}


# --- other kits of the families: their numbers are this project's own, so that they say nothing but of the tests


def write_kit(path: Path, description: dict, tensors: dict[str, torch.Tensor]) -> None:
    path.write_text(json.dumps(description))
    save_file({name: value.detach().contiguous() for name, value in tensors.items()}, path.with_suffix(".safetensors"))


def sampler_kit(folder: Path) -> None:
    """Two latents and one condition for both; a run without intermediate values, and one without its result."""
    generator = torch.Generator().manual_seed(0)
    toy = {"a": 0.3, "b": 0.45, "c": 0.25}
    start = torch.randn(2, 4, 3, 6, 5, generator=generator)
    cond, null = torch.randn(2, 1, 4, 3, 6, 5, generator=generator)
    tensors, runs = {"x_T": start, "cond": cond.double(), "uncond": null}, {}

    def of_batch(latents: torch.Tensor) -> Conditions:
        empty = torch.zeros(2, 1, 1)
        return Conditions(empty, empty, torch.ones(2), latents.expand(2, -1, -1, -1, -1))

    for run, steps, eta in (("A.S3", 3, 0.0), ("B.S4", 4, 1.0), ("C.S2", 2, 0.0)):
        noise = torch.randn(steps, *start.shape, generator=generator)
        sets = ConditionSets(of_batch(null), of_batch(cond), of_batch(cond))
        denoise = Guidance(3.0, 3.0, 0.5).denoiser(
            lambda conditions: lambda x, t: toy["a"] * x + toy["b"] * conditions.concat_latents
            + toy["c"] * t.float().view(-1, 1, 1, 1, 1) / 1000,
            sets,
        )  # fmt: skip
        sampler = DDIMSampler(NoiseSchedule(), steps=steps, eta=eta)
        final = sampler.sample(denoise, tuple(start.shape), start=start, noise=noise)
        runs[run] = {"S": steps, "eta": eta, "cfg": 3.0, "gr": 0.5, "dynamic_rescale": True}
        tensors |= ({f"{run}.noise": noise} if eta else {}) | ({} if run == "C.S2" else {f"{run}.final": final})
    write_kit(folder / "ddim_other.json", {"toy_model": toy, "runs": runs}, tensors)


def resampler_kit(folder: Path) -> None:
    """Other sizes, and neither gradients nor the case "single"."""
    sizes = {
        "dim": 24, "depth": 3, "dim_head": 6, "heads": 2, "num_queries": 5, "embedding_dim": 20, "output_dim": 12,
        "ff_mult": 2, "video_length": 3,
    }  # fmt: skip
    torch.manual_seed(0)
    model = Resampler(ResamplerConfig(**sizes))
    x = torch.randn(3, 7, 20)
    tensors = {f"image_proj_model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {"io.x": x, "io.out": model(x).flatten(1, 2)}
    write_kit(folder / "resampler_tiny_other.json", {"config": sizes, "cases": {"out": {}}}, tensors)


def test_kits_of_other_sizes_are_compared_and_what_they_lack_is_named(tmp_path: Path) -> None:
    sampler_kit(tmp_path)
    resampler_kit(tmp_path)
    tests = [f"tests/parity/test_{name}_parity.py" for name in ("ddim", "resampler")]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA", *tests]
    environment = os.environ | {"RECONX_GOLDEN": str(tmp_path)}
    result = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    for run in ("A.S3", "B.S4"):
        assert f"PASSED tests/parity/test_ddim_parity.py::test_recorded_run[ddim_other-{run}]" in result.stdout
    for lacking in (
        "ddim_other.safetensors does not hold C.S2.final; all else agrees",
        "resampler_tiny_other.safetensors does not hold io.grad_out; all else agrees",
        'resampler_tiny_other.json does not hold the entry "cases.single_out"',
        "does not hold unet_512_interp_keys.json",
    ):
        assert lacking in result.stdout

    broken = load_file(tmp_path / "ddim_other.safetensors")
    broken["B.S4.final"] = broken["B.S4.final"] * 1.001
    save_file(broken, tmp_path / "ddim_other.safetensors")
    result = subprocess.run([*command[:-1]], cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert result.returncode == 1 and "1 failed" in result.stdout


def test_a_kit_skips_what_it_lacks_by_name(tmp_path: Path) -> None:
    kit = tmp_path / "small.json"
    save_file({"half": torch.ones(2).half(), "number": torch.arange(2)}, kit.with_suffix(".safetensors"))
    kit.write_text(json.dumps({"results": {"loss": 1.0}}))
    info, tensors = read_kit(kit)
    assert tensors["half"].dtype == torch.float32 and tensors["number"].dtype == torch.int64
    assert read_kit(kit, exact=True)[1]["half"].dtype == torch.float16
    assert load_file(weights_file(kit))["half"].dtype == torch.float32
    assert tensors.cases(r"(ha|num).+") == ["ha", "num"] and tensors.under("num").keys() == {"ber"}
    for asked, words in (
        (lambda: tensors["io.x"], "small.safetensors does not hold the tensor io.x"),
        (lambda: tensors.under("io."), r"tensors io\.\*"),
        (lambda: info["results"]["errors"], 'small.json does not hold the entry "results.errors"'),
        (lambda: read_kit(tmp_path / "small.json", "{}_io.safetensors"), "does not hold small_io.safetensors"),
    ):
        with pytest.raises(pytest.skip.Exception, match=words):
            asked()
    seen = []
    with pytest.raises(pytest.skip.Exception, match=r"hold a, b; all else agrees"), Held(tensors) as held:
        seen += [name for name, _ in held.of(["a", "half", "b", "number"])]
    assert seen == ["half", "number"]
    with pytest.raises(AssertionError), Held(tensors) as held:  # a failure comes before what is missing
        assert held.has("a")
