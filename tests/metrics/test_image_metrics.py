"""The metrics against their definitions, and the order of the means: targets of a scene first, then scenes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from reconx_pl.errors import BadSceneError, ConfigurationError, MissingWeightsError
from reconx_pl.metrics.image import MetricSuite, psnr, ssim
from reconx_pl.metrics.lpips_weights import FILE_NAMES, _shapes
from reconx_pl.metrics.scene_means import SceneMetrics


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    target = torch.rand(3, 3, 24, 31, generator=generator)
    return (target + 0.1 * torch.randn(target.shape, generator=generator)).clamp(0, 1), target


def test_psnr_is_scikit_images(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    prediction, target = pair
    expected = [peak_signal_noise_ratio(t.numpy(), p.numpy(), data_range=1) for p, t in zip(*pair, strict=True)]
    np.testing.assert_allclose(psnr(prediction, target), expected, atol=1e-5)


def test_psnr_clips_to_the_unit_range() -> None:
    target = torch.ones(1, 3, 8, 8)
    assert psnr(target * 1.7, target).item() == pytest.approx(100)
    assert psnr(target * 0.9, target).item() == pytest.approx(20, abs=1e-4)


def test_ssim_is_the_fields_call_and_not_a_neighbour(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    prediction, target = (images.numpy() for images in pair)
    call = {"channel_axis": 0, "data_range": 1}
    expected = [
        structural_similarity(t, p, win_size=11, gaussian_weights=True, **call)
        for p, t in zip(prediction, target, strict=True)
    ]
    np.testing.assert_allclose(ssim(*pair), expected, atol=1e-7)
    default = [structural_similarity(t, p, **call) for p, t in zip(prediction, target, strict=True)]
    assert np.abs(np.asarray(default) - ssim(*pair).numpy()).max() > 1e-3


def test_metrics_reject_what_they_cannot_judge(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    prediction, target = pair
    with pytest.raises(ConfigurationError, match="one size"):
        psnr(prediction, target[..., 1:])
    with pytest.raises(ConfigurationError, match="11 x 11"):
        ssim(prediction[..., :10], target[..., :10])
    with pytest.raises(ConfigurationError, match="fid"):
        MetricSuite(("psnr", "fid"))
    broken = prediction.clone()
    broken[0, 0, 0, 0] = math.nan
    with pytest.raises(BadSceneError, match="NaN"):
        MetricSuite(("psnr",))(broken, target)


def test_lpips_without_weights_is_absent_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, pair: tuple[torch.Tensor, torch.Tensor]
) -> None:
    perceptual = pytest.importorskip("reconx_pl.metrics.lpips")

    def missing(*_args: object, **_kwargs: object) -> None:
        raise MissingWeightsError("no VGG backbone in the cache")

    monkeypatch.setattr(perceptual, "LpipsDistance", missing)
    suite = MetricSuite()
    assert suite.names == ("psnr", "ssim")
    assert "no VGG backbone" in suite.absent["lpips"] and "reconx weights fetch lpips" in suite.absent["lpips"]
    assert set(suite(*pair)) == {"psnr", "ssim"}


def test_real_lpips_ranks_a_worse_image_worse() -> None:
    pytest.importorskip("reconx_pl.metrics.lpips")
    suite = MetricSuite(("lpips",))
    if suite.absent:
        pytest.skip(suite.absent["lpips"])
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(1, 3, 32, 32, generator=generator).repeat(3, 1, 1, 1)
    noise = torch.randn(1, 3, 32, 32, generator=generator)
    scores = suite(torch.stack([target[0], target[0] + 0.02 * noise[0], target[0] + 0.2 * noise[0]]), target)["lpips"]
    assert scores[0] == pytest.approx(0, abs=1e-6)
    assert scores[0] < scores[1] < scores[2]


@pytest.fixture
def masks() -> torch.Tensor:
    found = torch.zeros(3, 24, 31, dtype=torch.bool)
    found[0, 2:14, 8:20], found[1, :, :16], found[2] = True, True, True
    return found


def test_masked_psnr_and_ssim_are_means_over_the_mask(
    pair: tuple[torch.Tensor, torch.Tensor], masks: torch.Tensor
) -> None:
    prediction, target = pair
    scores = MetricSuite(("psnr", "ssim"))(prediction, target, masks)
    for view in range(2):
        inside = masks[view].expand(3, -1, -1)
        error = (prediction[view][inside] - target[view][inside]).double().square().mean().item()
        assert scores["psnr"][view].item() == pytest.approx(-10 * math.log10(error), abs=1e-5)
        seen = torch.where(inside, prediction[view], target[view]).numpy()
        call = {"win_size": 11, "gaussian_weights": True, "channel_axis": 0, "data_range": 1, "full": True}
        whole = structural_similarity(target[view].numpy(), seen, **call)[1]
        inner = masks[view].numpy() & (np.pad(np.ones((14, 21)), 5) > 0)  # scikit-image leaves 5 pixels out of a mean
        assert scores["ssim"][view].item() == pytest.approx(float(whole[:, inner].mean()), abs=1e-7)
    plain = MetricSuite(("psnr", "ssim"))(prediction, target)
    for name in ("psnr", "ssim"):  # a mask of all pixels is none
        assert scores[name][2].item() == pytest.approx(plain[name][2].item(), abs=1e-7)
        assert abs(scores[name][0] - plain[name][0]) > 1e-3


def test_white_masks_score_as_regnerf_does(pair: tuple[torch.Tensor, torch.Tensor], masks: torch.Tensor) -> None:
    prediction, target = pair
    scores = MetricSuite(("psnr", "ssim"))(prediction, target, masks, "white")
    assert torch.equal(scores["psnr"], MetricSuite(("psnr",))(prediction, target, masks)["psnr"])
    white = [torch.where(masks[:, None], images, 1.0) for images in pair]
    assert torch.allclose(scores["ssim"], ssim(*white), atol=1e-9)
    assert scores["ssim"][0] > MetricSuite(("ssim",))(prediction, target, masks)["ssim"][0]  # white is easy


def test_masked_lpips_looks_at_the_mask(
    tmp_path: Path, pair: tuple[torch.Tensor, torch.Tensor], masks: torch.Tensor
) -> None:
    generator = torch.Generator().manual_seed(0)
    backbone = {name: 0.05 * torch.randn(shape, generator=generator) for name, shape in _shapes("vgg").items()}
    save_file(backbone, tmp_path / FILE_NAMES["vgg"])
    suite = MetricSuite(("lpips",), lpips_weights=str(tmp_path))
    prediction, target = pair
    spoiled = torch.where(masks[:, None], target, prediction)  # right within, wrong without
    assert suite(spoiled, target)["lpips"][0] > 1e-6
    for way in ("targets", "white"):
        assert torch.equal(suite(spoiled, target, masks, way)["lpips"], torch.zeros(3, dtype=torch.float64))
        assert (suite(prediction, target, masks, way)["lpips"] > 1e-6).all()


def test_parts_are_means_of_the_whole_images_maps(
    tmp_path: Path, pair: tuple[torch.Tensor, torch.Tensor], masks: torch.Tensor
) -> None:
    generator = torch.Generator().manual_seed(0)
    backbone = {name: 0.05 * torch.randn(shape, generator=generator) for name, shape in _shapes("vgg").items()}
    save_file(backbone, tmp_path / FILE_NAMES["vgg"])
    suite = MetricSuite(lpips_weights=str(tmp_path))
    prediction, target = pair
    whole, parts = suite.split(prediction, target, {"in": masks, "out": ~masks})
    plain = suite(prediction, target)
    assert all(torch.equal(whole[name], plain[name]) for name in ("psnr", "ssim", "lpips"))
    error = (prediction.clamp(0, 1) - target).double().square().mean(dim=1)
    assert parts["in"]["psnr"][0].item() == pytest.approx(-10 * math.log10(error[0][masks[0]].mean()), abs=1e-6)
    assert parts["out"]["psnr"][1].item() == pytest.approx(-10 * math.log10(error[1][~masks[1]].mean()), abs=1e-6)
    call = {"win_size": 11, "gaussian_weights": True, "channel_axis": 0, "data_range": 1, "full": True}
    similar = structural_similarity(target[0].numpy(), prediction[0].numpy(), **call)[1].mean(axis=0)
    assert parts["in"]["ssim"][0].item() == pytest.approx(float(similar[masks[0].numpy()].mean()), abs=1e-6)
    distant = suite._lpips(prediction, target, spatial=True)[:, 0]
    assert parts["out"]["lpips"][0].item() == pytest.approx(distant[0][~masks[0]].mean().item(), rel=1e-5)
    assert all(values[2].isnan() for values in parts["out"].values())  # the third mask has every pixel
    cut = masks & (torch.arange(31) < 12)
    scored, within = suite.split(prediction, target, {"in": masks}, cut)
    assert torch.equal(scored["psnr"], within["in"]["psnr"])  # of a part those pixels that are scored at all


def test_masks_that_measure_nothing_are_refused(pair: tuple[torch.Tensor, torch.Tensor], masks: torch.Tensor) -> None:
    suite = MetricSuite(("psnr", "ssim"))
    empty = masks.clone()
    empty[1] = False
    with pytest.raises(BadSceneError, match=r"targets \[1\]"):
        suite(*pair, empty)
    corner = torch.zeros_like(masks)
    corner[:, :3, :3] = True
    with pytest.raises(BadSceneError, match="off the border"):
        suite(*pair, corner)
    for wrong in (masks.float(), masks[:, 1:]):
        with pytest.raises(ConfigurationError, match="masks"):
            suite(*pair, wrong)


def test_scenes_count_once_however_many_targets_they_have() -> None:
    metric = SceneMetrics(("psnr",))
    metric.update({"psnr": [10.0, 20.0, 30.0]})  # mean 20
    metric.update({"psnr": [40.0]})
    assert metric.compute()["psnr"].item() == pytest.approx(30.0)  # a flat mean would say 25


def test_a_metric_that_one_scene_lacks_is_not_reported() -> None:
    metric = SceneMetrics(("psnr", "lpips"))
    metric.update({"psnr": [10.0], "lpips": [0.5]})
    metric.update({"psnr": [20.0]})
    assert set(metric.compute()) == {"psnr"}
    with pytest.raises(ConfigurationError, match="without targets"):
        metric.update({"psnr": []})


def test_half_precision_trainers_do_not_round_the_sums() -> None:
    assert SceneMetrics().set_dtype(torch.float16).totals.dtype == torch.float64
    assert SceneMetrics().half().totals.dtype == torch.float64
