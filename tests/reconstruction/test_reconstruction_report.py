"""The report of a reconstruction: everything in one file, whatever the run reached, and what it says is so."""

from __future__ import annotations

import base64
import io
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from headless_browser import Browser, NoBrowser
from html_pages import read_page
from PIL import Image
from reconstructed_folders import COLMAP, DUST3R, GENERATED, POINTS, WHOLE, pictures, reconstructed, ring

from reconx_pl.reconstruction import report_pictures
from reconx_pl.reconstruction.report import write_report
from reconx_pl.reconstruction.settings import GEOMETRY, PHOTOGRAPHS
from reconx_pl.types import PointCloud
from reconx_pl.visualization.camera_map import DOTS, plan

NAMES = ("a <b>.jpg", 'b&"c.jpg', "c.jpg")


def section(page: str, head: str) -> str:
    start = page.index(f"<h2>{head}</h2>")
    end = page.find("<h2>", start + 4)
    return page[start : end if end > 0 else len(page)]


def embedded(part: str) -> list[np.ndarray]:
    """The JPEGs of a part of the page, [H, W, 3]."""
    found = re.findall(r"data:image/jpeg;base64,([^\"]+)", part)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).astype(int) for data in found]


def test_report_stands_alone(tmp_path: Path) -> None:
    path = write_report(tmp_path, reconstructed(tmp_path, NAMES, GENERATED, view_generator="model", closed=True))
    page, links = read_page(path)
    assert path == tmp_path / "report.html"
    assert not [target for target in links.targets if re.match(r"(https?:)?//", target)]
    assert not re.search(r"url\(|@import|<script", page)
    local = [target for target in links.targets if not target.startswith("data:")]
    assert all((tmp_path / target).exists() for target in local)
    assert {"scene.ply", "cameras.json", "sparse/0/", "flythrough.mp4", "generated.mp4"} <= set(local)
    assert sum(target.startswith("data:video/mp4") for target in links.targets) == 3
    assert all(links.alts)


def test_report_says_what_was_made(tmp_path: Path) -> None:
    summary = reconstructed(tmp_path, NAMES, WHOLE, kept=[PHOTOGRAPHS, GEOMETRY], closed=True)
    page, _ = read_page(write_report(tmp_path, summary))
    assert "<b>3 photographs</b>" in page and "<b>12,345</b> Gaussians" in page and ">complete<" in page
    assert "reconx view scene.ply --cameras ." in page
    order = ['<a class="open" href="scene.html">', "Fly-through", "Photographs and scene", "What came out", "Stages"]
    assert sorted(order, key=page.index) == order, "pictures before files"
    pairs = section(page, "Photographs and scene")
    assert "no measure of its quality" in pairs and "PSNR 21.25 dB on average, 20.25 to 22.25" in pairs
    assert "Nothing was generated" in section(page, "Generated frames")
    assert "mean of the first tenth 0.4567, of the last 0.02085" in section(page, "Fit")
    stages = section(page, "Stages")
    assert re.findall(r"<tr><td>(\w+)</td>.*?<td>(kept|now)</td></tr>", stages) == [
        ("photographs", "kept"), ("geometry", "kept"), ("frames", "now"), ("fit", "now"), ("flythrough", "now"),
    ]  # fmt: skip
    assert "18 s for all stages, 14 s of them in this run" in stages and "<td>1.0 GB</td>" in stages
    assert "fit.steps" in section(page, "Settings") and COLMAP in section(page, "Who made it")


def test_text_from_outside_is_escaped(tmp_path: Path) -> None:
    out = tmp_path / "<i>&"
    page, _ = read_page(
        write_report(out, reconstructed(out, NAMES, GENERATED, view_generator="model <script>", closed=True))
    )
    for raw in ("<b>.jpg", 'b&"c', "<i>&", "<script>", "<fitted>"):
        assert raw not in page
    for text in ("a &lt;b&gt;.jpg", "b&amp;&quot;c.jpg", "&lt;i&gt;&amp;", "model &lt;script&gt;"):
        assert text in page
    assert "7 Gaussians &lt;fitted&gt; &amp; kept" in page and "a.jpg &amp; b.jpg were cropped" in page


def test_each_photograph_stands_before_its_scene_and_their_difference(tmp_path: Path) -> None:
    page, _ = read_page(write_report(tmp_path, reconstructed(tmp_path, NAMES, WHOLE)))
    shown = embedded(section(page, "Photographs and scene"))
    colors = pictures(3)[:, :, 0, 0].int().numpy()
    assert len(shown) == 9
    for view, color in enumerate(colors):
        photograph, scene, error = shown[3 * view : 3 * view + 3]
        assert abs(photograph - color).max() <= 4 and abs(scene - (255 - color)).max() <= 4
        wrong = min(1.0, report_pictures.GAIN * float(np.abs(255 - 2 * color).mean()) / 255)
        assert abs(error.mean() - 255 * np.mean(magma(wrong))) <= 4


def magma(share: float) -> tuple[float, ...]:
    from matplotlib import colormaps

    return colormaps["magma"](share)[:3]


def test_a_run_that_ended_with_cameras_shows_what_is_there(tmp_path: Path) -> None:
    """Files of an earlier, longer run stay in the folder, and are not taken for those of this one."""
    summary = reconstructed(tmp_path, NAMES, WHOLE, reached=[PHOTOGRAPHS, GEOMETRY])
    page, links = read_page(write_report(tmp_path, summary))
    assert (tmp_path / "scene.ply").is_file() and "scene.ply" not in page and "flythrough.mp4" not in page
    assert "This run ended after geometry" in page and "Not there: frames, fit, flythrough." in page
    assert "reconx reconstruct --resume -o ." in page and "no scene yet" in page
    assert "<h2>Fly-through</h2>" not in page and "<h2>Fit</h2>" not in page
    colors = pictures(3)[:, :, 0, 0].int().numpy()
    for shown, color in zip(embedded(section(page, "Photographs")), colors, strict=True):
        assert abs(shown - color).max() <= 4
    assert "<svg" in section(page, "Cameras from above") and "cameras.json" in links.targets


def test_stages_that_were_deleted_are_said_to_be(tmp_path: Path) -> None:
    summary = reconstructed(tmp_path, NAMES, WHOLE)
    shutil.rmtree(tmp_path / "stages")
    page, links = read_page(write_report(tmp_path, summary))
    assert "stages/ was deleted" in section(page, "Photographs") and "scene.ply" in links.targets
    assert "stages/" not in links.targets


@pytest.mark.parametrize("closed", [False, True])
def test_every_generated_clip_has_a_strip_between_its_photographs(tmp_path: Path, closed: bool) -> None:
    summary = reconstructed(tmp_path, ["a.jpg", "b.jpg", "c.jpg"], GENERATED, view_generator="model", closed=closed)
    part = section(read_page(write_report(tmp_path, summary))[0], "Generated frames")
    ways = ["a.jpg to b.jpg", "b.jpg to c.jpg", *(["c.jpg to a.jpg"] if closed else [])]
    assert re.findall(r"<figcaption>(\w\.jpg to \w\.jpg), 3 generated", part) == ways
    strips = embedded(part)
    assert len(strips) == len(ways)
    for number, strip in enumerate(strips):
        places = np.linspace(0, strip.shape[1], 5, endpoint=False).astype(int) + strip.shape[1] // 10
        assert abs(strip[80, places] - pictures(5, number)[:, :, 0, 0].int().numpy()).max() <= 6


def test_of_many_photographs_some_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_pictures, "PICTURED", 3)
    names = [f"{view}.jpg" for view in range(7)]
    part = section(write_report(tmp_path, reconstructed(tmp_path, names, WHOLE)).read_text(), "Photographs and scene")
    assert "3 of 7 are shown" in part and "PSNR 23.25 dB on average" in part
    assert re.findall(r"<b>(\d)\.jpg</b> ([\d.]+) dB", part) == [("0", "20.25"), ("3", "23.25"), ("6", "26.25")]


def test_a_large_video_is_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = reconstructed(tmp_path, NAMES, WHOLE)
    size = (tmp_path / "flythrough.mp4").stat().st_size
    (tmp_path / "flythrough_depth.mp4").write_bytes(bytes(size + 1))
    monkeypatch.setattr(report_pictures, "VIDEO_LIMIT", size)
    page, links = read_page(write_report(tmp_path, summary))
    assert sum(target.startswith("data:video/mp4") for target in links.targets) == 1
    assert '<a href="flythrough_depth.mp4">' in section(page, "Fly-through")


@pytest.mark.parametrize(
    ("estimator", "terms"),
    [
        (COLMAP, None),
        (DUST3R, "CC BY-NC-SA 4.0"),
        ("Depth-Anything-3 da3-base 0123456789abcdef Da3Options()", None),
        ("Depth-Anything-3 da3-large 0123456789abcdef Da3Options()", "CC BY-NC 4.0"),
    ],
)
def test_a_licence_against_commercial_use_is_named_where_it_binds(
    tmp_path: Path, estimator: str, terms: str | None
) -> None:
    page = write_report(tmp_path, reconstructed(tmp_path, NAMES, WHOLE, estimator=estimator)).read_text()
    assert ("Not for commercial use" in page) == ("CC BY-NC" in page) == (terms is not None)
    assert terms is None or terms in page


def numbers(text: str) -> np.ndarray:
    return np.array([float(number) for number in re.findall(r"-?[\d.]+", text)])


def eyes(drawing: str) -> np.ndarray:
    return numbers(" ".join(re.findall(r'class="eye" (cx="[\d.]+" cy="[\d.]+")', drawing))).reshape(-1, 2)


def triangles(drawing: str) -> np.ndarray:
    return np.stack([numbers(each) for each in re.findall(r'class="camera[^"]*" points="([^"]+)"', drawing)]).reshape(
        -1, 3, 2
    )


def test_plan_of_a_ring() -> None:
    """Seen from above, with the viewing direction of the first camera upwards, and not mirrored."""
    drawing, dots = plan(ring(8), None, closed=True)
    places = eyes(drawing)
    middle = places.mean(axis=0)
    radii = np.linalg.norm(places - middle, axis=1)
    assert dots == 0 and len(places) == 8 and np.ptp(radii) < 0.5 and radii.min() > 100
    way = re.search(r'<polygon class="way" points="([^"]+)"', drawing)
    assert way is not None and np.abs(numbers(way[1]).reshape(-1, 2) - places).max() < 0.2
    for eye, triangle in zip(places, triangles(drawing), strict=True):
        ahead = triangle[1:].mean(axis=0) - eye
        assert ahead @ (middle - eye) > 0.999 * np.linalg.norm(ahead) * np.linalg.norm(middle - eye)
    start, second = places[0] - middle, places[1] - middle
    assert start[1] > 100 and abs(start[0]) < 0.5  # below, and looks up
    # Its x axis points to the right of the drawing. The second camera has turned right, so it stands to the left.
    assert second[0] < -50


def test_plan_has_the_points_before_the_cameras() -> None:
    cameras = ring(8)[[0, 1]]
    cloud = PointCloud(torch.zeros(POINTS, 3), torch.zeros(POINTS, 3), torch.ones(POINTS))
    drawing, dots = plan(cameras, cloud, closed=False)
    assert 0 < dots <= DOTS and drawing.count("<circle") == dots + 2 and "<polyline" in drawing
    dot = numbers(re.findall(r'<circle (cx="[\d.]+" cy="[\d.]+)" r=', drawing)[0])
    assert dot[1] < eyes(drawing)[:, 1].min() - 50


def test_plan_of_cameras_in_one_place_is_finite() -> None:
    drawing, _ = plan(ring(4)[[0, 0, 0]], None, closed=False)
    assert "nan" not in drawing and np.isfinite(eyes(drawing)).all()


@pytest.fixture(scope="module")
def long_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with names that do not break of themselves."""
    out = tmp_path_factory.mktemp("report") / ("scene_" * 20)
    names = [f"{'photograph_' * 12}{view}.jpg" for view in range(4)]
    summary = reconstructed(
        out, names, GENERATED, view_generator="model" * 60, estimator=DUST3R + "x" * 200, closed=True
    )
    return write_report(out, summary)


@pytest.mark.parametrize("width", [390, 1280])
def test_no_browser_scrolls_sideways(tmp_path: Path, long_page: Path, width: int) -> None:
    try:
        with Browser(tmp_path, (width, 900)) as browser:
            browser.open(long_page.as_uri())

            def measured(expression: str) -> float:
                return browser.ask("Runtime.evaluate", expression=expression)["result"]["value"]

            assert measured("window.innerWidth") == width
            assert measured("document.documentElement.scrollWidth") <= width
            # Pictures and drawings are really there, at a size that can be seen.
            assert measured("[...document.images].filter(i => !i.complete || !i.naturalWidth).length") == 0
            assert measured("document.querySelector('svg.plan').getBoundingClientRect().width") > 250
    except NoBrowser as reason:
        pytest.skip(str(reason))
