"""Who finds poses and points where nobody was named, and who never does."""

from __future__ import annotations

from pathlib import Path

import pytest

from reconx_pl.errors import ConfigurationError, MissingWeightsError
from reconx_pl.geometry.da3.pretrained import WEIGHTS as DA3_WEIGHTS
from reconx_pl.geometry.da3.pretrained import PretrainedDa3
from reconx_pl.geometry.default_estimator import default_estimator, named_estimator
from reconx_pl.geometry.dust3r.pretrained import WEIGHTS as DUST3R_WEIGHTS
from reconx_pl.geometry.dust3r.pretrained import PretrainedDust3r
from reconx_pl.geometry.estimators.colmap import ColmapEstimator
from reconx_pl.geometry.estimators.plane_sweep_estimator import PlaneSweepEstimator


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")


def put(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"weights")


def test_without_weights_it_is_structure_from_motion_and_a_line_says_how_to_get_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert isinstance(default_estimator(Path("garden"), "poses"), ColmapEstimator)
    assert len(caplog.records) == 1
    for part in ("garden", "reconx weights fetch da3-base", "0.54 GB", "Apache-2.0", "--estimator"):
        assert part in caplog.text
    caplog.clear()
    assert isinstance(named_estimator("auto"), PlaneSweepEstimator)
    assert len(caplog.records) == 1 and "--geometry" in caplog.text and "da3-base" in caplog.text


def test_weights_that_are_not_for_commercial_use_are_never_taken_unasked(caplog: pytest.LogCaptureFixture) -> None:
    put(DUST3R_WEIGHTS)
    assert isinstance(default_estimator(Path("garden"), "poses"), ColmapEstimator)
    assert isinstance(named_estimator("auto"), PlaneSweepEstimator)
    assert "DUSt3R" not in caplog.text
    assert isinstance(named_estimator("dust3r"), PretrainedDust3r)


def test_the_base_model_is_taken_where_its_weights_are(caplog: pytest.LogCaptureFixture) -> None:
    put(DA3_WEIGHTS["da3-small"])
    assert isinstance(named_estimator("auto"), PlaneSweepEstimator), "the small one has to be asked for"
    put(DA3_WEIGHTS["da3-base"])
    put(DUST3R_WEIGHTS)
    caplog.clear()
    for chosen in (default_estimator(Path("garden"), "poses"), named_estimator("auto", "cpu")):
        assert isinstance(chosen, PretrainedDa3) and chosen.weights == DA3_WEIGHTS["da3-base"]
    assert "Apache-2.0" in caplog.text and "weights/da3_base.safetensors" in caplog.text


def test_names() -> None:
    for name, place in DA3_WEIGHTS.items():
        with pytest.raises(MissingWeightsError, match=rf"{place.name}.*reconx weights fetch {name}.*--geometry colmap"):
            named_estimator(name)
        put(place)
        chosen = named_estimator(name, "cpu")
        assert isinstance(chosen, PretrainedDa3) and chosen.weights == place and chosen.device.type == "cpu"
    with pytest.raises(MissingWeightsError, match="not for commercial use.*--geometry colmap"):
        named_estimator("dust3r")
    with pytest.raises(ConfigurationError, match="not 'mast3r'"):
        named_estimator("mast3r")  # type: ignore[arg-type]
