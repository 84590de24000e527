"""The viewer: what a real browser shows of a scene, and how the command starts and ends."""

from __future__ import annotations

import logging
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from command_parsers import ROOT
from headless_browser import Browser, NoBrowser
from raw_scenes import write_posed
from scipy.spatial.transform import Rotation

from reconx_pl.cli.main import main
from reconx_pl.errors import BadSceneError, ConfigurationError
from reconx_pl.geometry.cameras import project, resize_cameras
from reconx_pl.splatting.initialise import SH_DC
from reconx_pl.splatting.io.scene_files import save_scene
from reconx_pl.splatting.renderers.cpu import CpuRenderer
from reconx_pl.types import Cameras, Gaussians
from reconx_pl.visualization.splat_scene import most_important
from reconx_pl.visualization.viewer import Viewer, write_scene_page

SIZE = 800, 600  # of the page; the cameras have the same aspect
TILT = math.radians(30)
# A world whose up is no axis and whose unit is so small that covariances would vanish in float16
WORLD, UNIT = Rotation.from_rotvec([0.4, -0.9, 0.3]), 0.001
COLORS = {"red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0), "blue": (0.0, 0.0, 1.0)}


def scene() -> Gaussians:
    """In the axes of the first camera: a red ball on the left, a green one on the right, a long blue one between."""
    means = torch.tensor([[-0.8, 0.35, 2.9], [0.8, 0.35, 3.1], [0.0, 0.45, 3.0]]).double().numpy()
    widths = np.array([[0.12] * 3, [0.12] * 3, [0.25, 0.03, 0.03]])
    turn = WORLD * Rotation.concatenate([Rotation.identity(), Rotation.identity(), Rotation.from_rotvec([0, 0, TILT])])
    x, y, z, w = turn.as_quat().T
    return Gaussians(
        means=torch.from_numpy(WORLD.apply(means) * UNIT).float(),
        quaternions=2 * torch.from_numpy(np.stack([w, x, y, z], axis=1)).float(),  # any norm
        log_scales=torch.from_numpy(np.log(widths * UNIT)).float(),
        opacity_logits=torch.full((3,), 5.0),
        sh=(torch.tensor(list(COLORS.values()))[:, None] - 0.5) / SH_DC,
    )


def cameras() -> Cameras:
    """The first looks along z, the second from behind, the third from the right."""
    centers = torch.tensor([[0.0, 0, 0], [0.0, -0.2, 6.0], [3.0, 0.0, 3.0]]).double()
    turns = Rotation.from_rotvec([[0, 0, 0], [0, math.pi, 0], [0, -math.pi / 2, 0]])
    to_world = torch.from_numpy((WORLD * turns).as_matrix())
    pose = torch.eye(4, dtype=torch.float64).repeat(3, 1, 1)
    pose[:, :3, :3] = to_world.transpose(1, 2)
    world = torch.from_numpy(WORLD.apply(centers.numpy()) * UNIT)
    pose[:, :3, 3] = -torch.einsum("vij,vj->vi", pose[:, :3, :3], world)
    k = torch.tensor([[400.0, 0, 200], [0, 400, 150], [0, 0, 1]]).double()
    return Cameras(pose, k.repeat(3, 1, 1), 300, 400)


def blob(image: np.ndarray, color: str) -> np.ndarray:
    """Pixels [N, 2] as (x, y) that are mostly of this colour, without viser's panels above and its axes in a corner."""
    image = image.copy()
    image[:230], image[500:, :100] = 0, 0
    channel = list(COLORS).index(color)
    others = [other for other in range(3) if other != channel]
    pixels = image.astype(int)
    ys, xs = np.nonzero((pixels[..., channel] > 150) & (pixels[..., others].max(axis=-1) < 90))
    return np.stack([xs, ys], axis=1) + 0.5


def where(view: int) -> dict[str, np.ndarray]:
    """Where the middles of the Gaussians belong on the page."""
    pixels, _ = project(scene().means.double(), cameras()[view])
    return dict(zip(COLORS, pixels[0].numpy() * SIZE[0] / 400, strict=True))


def seen(browser: Browser, fits: Callable[[np.ndarray], bool], seconds: float = 30) -> np.ndarray:
    """The first screenshot that fits, or the last one."""
    end = time.monotonic() + seconds
    while True:
        image = browser.screenshot()
        if fits(image) or time.monotonic() > end:
            return image
        time.sleep(0.3)


def in_place(view: int, colors: tuple[str, ...]) -> Callable[[np.ndarray], bool]:
    def fits(image: np.ndarray) -> bool:
        for color in colors:
            pixels = blob(image, color)
            if len(pixels) < 100 or np.abs(pixels.mean(axis=0) - where(view)[color]).max() > 4:
                return False
        return True

    return fits


def black_behind(image: np.ndarray) -> bool:
    """Whether there is black behind the scene, as it was fitted, and the page has finished to fade in."""
    return bool((image[560:590, 300:500] < 10).all())


@pytest.fixture
def browser() -> Iterator[Browser]:
    folder = Path(tempfile.mkdtemp(prefix="chromium"))
    try:
        with Browser(folder, SIZE) as running:
            yield running
    except NoBrowser as reason:
        pytest.skip(str(reason))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_a_browser_shows_the_scene_from_its_cameras(browser: Browser) -> None:
    with Viewer(scene(), cameras(), port=0) as viewer:
        browser.open(viewer.url)
        # viser fades in from white, and where it draws in software that takes seconds
        image = seen(browser, lambda image: black_behind(image) and in_place(0, ("red", "green", "blue"))(image))
        assert in_place(0, ("red", "green", "blue"))(image), "the scene is not where the first camera has it"
        assert np.median(blob(image, "red")[:, 0]) < SIZE[0] / 2 < np.median(blob(image, "green")[:, 0])
        assert black_behind(image)
        long = blob(image, "blue") - blob(image, "blue").mean(axis=0)
        widths, axes = np.linalg.eigh(long.T @ long / len(long))
        assert math.sqrt(widths[1] / widths[0]) > 4
        assert math.degrees(math.atan(axes[1, 1] / axes[0, 1])) == pytest.approx(math.degrees(TILT), abs=2)
        viewer.jump(1)  # from behind, left and right change places
        image = seen(browser, in_place(1, ("red", "green")))
        assert in_place(1, ("red", "green"))(image), "the scene is not where the second camera has it"
        assert blob(image, "green")[:, 0].max() < blob(image, "red")[:, 0].min()
        with pytest.raises(ConfigurationError, match="no camera 3"):
            viewer.jump(3)


def test_a_browser_shows_a_scene_without_cameras(browser: Browser) -> None:
    # not quite round: viser 1.1's shader loses balls that are exactly on the middle lines of the page
    upright = replace(scene(), means=torch.tensor([[-0.8, 0.7, 2.9], [0.8, 0.6, 3.1], [0.05, 0.35, 3.0]]))
    upright.log_scales = torch.tensor([[0.13, 0.12, 0.11]]).log().repeat(3, 1)
    with Viewer(upright, port=0) as viewer:
        browser.open(viewer.url)
        fits = lambda image: min(len(blob(image, color)) for color in COLORS) > 30  # noqa: E731
        image = seen(browser, fits)
        assert fits(image)
        assert blob(image, "red")[:, 0].mean() < blob(image, "blue")[:, 0].mean() < blob(image, "green")[:, 0].mean()
        assert blob(image, "blue")[:, 1].mean() < blob(image, "red")[:, 1].mean()  # -y is up


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_the_command_serves_until_it_is_interrupted(tmp_path: Path) -> None:
    save_scene(scene(), tmp_path / "scene.ply")
    posed = write_posed(tmp_path / "posed")
    # A shell that runs the tests in the background hands down that SIGINT is ignored.
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    program += "from reconx_pl.cli.main import main; main()"
    arguments = ["view", str(tmp_path / "scene.ply"), "--cameras", str(posed), "--port", str(free_port())]
    log = tmp_path / "log"
    with log.open("wb") as out:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", program, *arguments]
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment)
    try:
        end = time.monotonic() + 60
        while not (found := re.search(r"http://127\.0\.0\.1:\d+", log.read_text())):
            assert time.monotonic() < end and process.poll() is None, log.read_text()
            time.sleep(0.2)
        assert found[0].endswith(f":{arguments[-1]}")
        with urllib.request.urlopen(found[0], timeout=10) as page:
            assert page.status == 200 and b"<html" in page.read(2000).lower()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()
    said = log.read_text()
    assert "stopped" in said and "Traceback" not in said and "viser" not in said, said


def test_a_taken_port_is_an_error() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"port {port}: taken.*--port"):
            Viewer(scene(), port=port)
    with pytest.raises(ConfigurationError, match="cannot serve on no.such.host.invalid"):
        Viewer(scene(), host="no.such.host.invalid", port=0)


def test_a_page_shows_the_scene_without_a_server(browser: Browser, tmp_path: Path) -> None:
    page, again = tmp_path / "scene.html", tmp_path / "again.html"
    small = torch.linspace(0, 1, 3)[:, None, None, None].expand(3, 3, 6, 8)
    for path in (page, again):
        write_scene_page(path, scene(), cameras(), title="<three> balls", images=small, frames=cameras())
    assert page.read_bytes() == again.read_bytes(), "the same scene is the same file"
    text = page.read_text()
    assert "<title>&lt;three&gt; balls</title>" in text and not re.search(r"(src|href)=.?https?:", text)
    browser.open(page.as_uri())
    image = seen(browser, lambda image: black_behind(image) and in_place(0, ("red", "green", "blue"))(image))
    assert in_place(0, ("red", "green", "blue"))(image), "the page starts at the first camera"
    larger = resize_cameras(cameras()[0], SIZE[1], SIZE[0])
    larger.world_to_camera[:, :3, 3] /= UNIT  # nothing is nearer than the renderer's near plane
    metres = replace(scene(), means=scene().means / UNIT, log_scales=scene().log_scales - math.log(UNIT))
    truth = CpuRenderer().render(metres, larger).color[0].clamp(0, 1).permute(1, 2, 0).numpy()
    part = slice(230, 500), slice(100, 700)  # viser's panels are above
    error = float(np.square(image[part] / 255 - truth[part]).mean())
    assert -10 * math.log10(error) >= 20, "our own render of the first camera"


def test_a_page_by_the_command(tmp_path: Path) -> None:
    save_scene(scene(), tmp_path / "scene.ply")
    posed = write_posed(tmp_path / "posed")
    out = tmp_path / "scene.html"
    main(["export", str(tmp_path / "scene.ply"), str(out), "--cameras", str(posed)])
    with_cameras = out.stat().st_size
    with pytest.raises(SystemExit):
        main(["export", str(tmp_path / "scene.ply"), str(out)])  # it is there
    main(["export", str(tmp_path / "scene.ply"), str(out), "--overwrite"])
    assert 500_000 < out.stat().st_size < with_cameras
    with pytest.raises(SystemExit):
        main(["export", str(tmp_path / "scene.ply"), str(tmp_path / "a.ply"), "--cameras", str(posed)])
    assert not (tmp_path / "a.ply").exists()


def test_what_cannot_be_shown() -> None:
    nothing = Gaussians(
        *(part[:0] for part in (scene().means, scene().quaternions, scene().log_scales)),
        torch.zeros(0),
        torch.zeros(0, 1, 3),
    )
    with pytest.raises(BadSceneError, match="no Gaussians"):
        Viewer(nothing, port=0)
    with pytest.raises(BadSceneError, match="NaN"):
        Viewer(replace(scene(), means=scene().means * float("nan")), port=0)
    with pytest.raises(BadSceneError, match="length zero"):
        Viewer(replace(scene(), quaternions=torch.zeros(3, 4)), port=0)
    with pytest.raises(ConfigurationError, match="at least 1"):
        Viewer(scene(), port=0, max_gaussians=0)


def test_themost_important_gaussians_are_kept(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        kept = most_important(scene(), 2)
    assert torch.equal(kept.means, scene().means[:2])  # the balls have more volume
    assert "2 most important of 3" in caplog.text
    assert len(most_important(scene(), 3)) == len(most_important(scene(), None)) == 3
