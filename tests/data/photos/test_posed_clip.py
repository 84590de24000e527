"""From folders of photographs to clips: with poses and no points, without either, and by an estimator of choice."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from scipy.spatial.transform import Rotation
from torch import Tensor

from reconx_pl.cli.evaluate import evaluation_clips
from reconx_pl.cli.evaluate_command import build_evaluate_parser
from reconx_pl.cli.main import main
from reconx_pl.data.formats import found_poses
from reconx_pl.data.formats.images import read_upright
from reconx_pl.data.formats.posed import read_points, read_posed
from reconx_pl.data.formats.readers import read_scenes
from reconx_pl.data.formats.scene import RawScene
from reconx_pl.data.packing.clip_sampling import scene_clip
from reconx_pl.data.photos.posed_clip import SceneWindow, find_geometry, posed_clip
from reconx_pl.data.photos.unposed import photograph_files, scene_of_photographs, without_poses
from reconx_pl.data.procedural import procedural_views
from reconx_pl.errors import BadDataError, BadSceneError, ConfigurationError
from reconx_pl.evaluation.settings import EvaluationConfig
from reconx_pl.evaluation.task import clip_task
from reconx_pl.geometry.cameras import project, resize_cameras, unproject
from reconx_pl.geometry.estimators.base import KnownDepth, Reconstruction
from reconx_pl.geometry.estimators.colmap import ColmapEstimator
from reconx_pl.geometry.procrustes import Similarity
from reconx_pl.geometry.similarity import alignment_quality, fit_cameras
from reconx_pl.types import AlignmentQuality, Cameras, Clip

HEIGHT, WIDTH, VIEWS = 240, 320, 5
WINDOW = SceneWindow(frames=VIEWS, height=64, width=64, points=512)


class Photographs:
    """Five photographs of a procedural landscape in a folder; their true cameras and depth."""

    def __init__(self, folder: Path) -> None:
        frames, self.depth, self.cameras = procedural_views(
            5, np.linspace(0, 1, VIEWS).tolist(), (HEIGHT, WIDTH), kind="landscape"
        )
        self.folder = folder
        (folder / "images").mkdir(parents=True)
        for view, picture in enumerate(frames.permute(0, 2, 3, 1).numpy()):
            Image.fromarray(picture).save(folder / "images" / f"photo{view + 8}.png")  # 10 after 9, not after 1

    def write_poses(self) -> None:
        """Poses alone, in the package's own layout."""
        frames = [
            {
                "file": f"images/photo{view + 8}.png",
                "w": WIDTH,
                "h": HEIGHT,
                "K": self.cameras.intrinsics[view].tolist(),
                "c2w": self.cameras.camera_to_world[view].tolist(),
            }
            for view in range(VIEWS)
        ]
        (self.folder / "cameras.json").write_text(json.dumps({"frames": frames}))


@pytest.fixture
def photographs(tmp_path: Path) -> Photographs:
    return Photographs(tmp_path / "garden")


class Foreign:
    """An estimator with a world of its own: the truth, moved; and one view turned by so many degrees."""

    def __init__(self, truth: Photographs, degrees: float = 0.0) -> None:
        self.truth, self.degrees = truth, degrees
        self.calls: list[tuple[int, Cameras | None]] = []

    def estimate(self, images: Tensor, cameras: Cameras | None = None) -> Reconstruction:
        self.calls.append((len(images), cameras))
        ends = [0, VIEWS - 1] if len(images) == 2 else list(range(VIEWS))
        true = self.truth.cameras[ends]
        found = KnownDepth(self.truth.depth[ends], points=2000).estimate(images, true)
        move = Similarity(
            torch.tensor(0.1),
            torch.from_numpy(Rotation.from_euler("xyz", [1, 2, 3]).as_matrix()),
            torch.tensor([5.0, 6.0, 7.0]),
        )
        pose = move.transform_cameras(true).world_to_camera.clone()
        turn = torch.from_numpy(Rotation.from_euler("y", self.degrees, degrees=True).as_matrix()).float()
        pose[-1, :3] = turn @ pose[-1, :3]
        cloud = replace(found.cloud, points=move.apply(found.cloud.points))
        return Reconstruction(replace(true, world_to_camera=pose), found.point_map, cloud)


def on_the_surface(clip: Clip, truth: Photographs) -> float:
    """Share of a clip's points within a twentieth of the true depth of the first view; what is hidden there is not."""
    assert clip.cloud is not None
    pixels, depth = project(clip.cloud.points, truth.cameras[:1])
    x, y = pixels[0].floor().long().unbind(-1)
    inside = (x >= 0) & (y >= 0) & (x < WIDTH) & (y < HEIGHT)
    true = truth.depth[0][y[inside], x[inside]]
    return float(((depth[0][inside] - true).abs() < 0.05 * true)[true > 0].float().mean())


def test_poses_without_points_are_triangulated_from_the_inputs(
    photographs: Photographs, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("pycolmap")
    photographs.write_poses()
    with caplog.at_level(logging.INFO):
        clip = posed_clip(photographs.folder, WINDOW)
    assert "no points and no depth; ColmapEstimator" in caplog.text  # chosen, and not in silence
    assert "the two input views" in clip.geometry and "poses of the data set" in clip.geometry
    assert clip.alignment is None
    assert clip.cloud is not None and len(clip.cloud) >= 64 and on_the_surface(clip, photographs) > 0.8
    true = scene_clip(read_posed(photographs.folder), range(VIEWS), 64, 64)
    torch.testing.assert_close(clip.cameras.world_to_camera, true.cameras.world_to_camera)
    more = posed_clip(photographs.folder, WINDOW, views="clip")
    assert more.cloud is not None and len(more.cloud) > len(clip.cloud) and "5 photographs" in more.geometry


def test_photographs_without_poses_become_a_clip(photographs: Photographs, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("pycolmap")
    assert without_poses(photographs.folder)
    with caplog.at_level(logging.INFO):
        clip = posed_clip(photographs.folder, WINDOW)
    assert "no poses; ColmapEstimator" in caplog.text
    assert "poses and points found by ColmapEstimator from 5 photographs, targets included" in clip.geometry
    assert clip.cloud is not None and len(clip.cloud) > 300
    scale = HEIGHT / 64  # the short side fits
    focal = clip.cameras.intrinsics[:, 0, 0] * scale / photographs.cameras.intrinsics[:, 0, 0]
    assert (focal - 1).abs().max() < 0.05
    quality = quality_of(clip.cameras, photographs)
    assert max(quality.rotation_degrees) < 0.5 and max(quality.translation_percent) < 1


def quality_of(found: Cameras, truth: Photographs) -> AlignmentQuality:
    return alignment_quality(fit_cameras(found, truth.cameras).transform_cameras(found), truth.cameras)


def test_an_estimator_that_is_named_takes_the_place_of_what_came_with_the_scene(photographs: Photographs) -> None:
    photographs.write_poses()
    points = unproject(photographs.depth[:1], photographs.cameras[:1])[0][photographs.depth[0] > 0]
    np.savez(photographs.folder / "points.npz", xyz=points.numpy(), rgb=np.zeros(points.shape, np.uint8))
    assert posed_clip(photographs.folder, WINDOW).geometry == ""
    ends = photographs.depth[[0, VIEWS - 1]]
    clip = posed_clip(photographs.folder, WINDOW, KnownDepth(ends, points=500))
    assert "found by KnownDepth from the two input views, with the poses of the data set" in clip.geometry
    assert clip.cloud is not None and clip.cloud.colors.max() > 0 and on_the_surface(clip, photographs) > 0.8
    # its depth and confidence are those of the input views, cropped as these are
    assert clip.depth is not None and clip.depth.shape == (2, WINDOW.height, WINDOW.width)
    y = ((torch.arange(64) + 0.5) / 64 * HEIGHT).long()  # 64 of 64 rows
    x = ((torch.arange(64) + 10 + 0.5) / 85 * WIDTH).long()  # 64 of 85 columns, from the tenth on
    torch.testing.assert_close(clip.depth, ends[:, y][:, :, x], rtol=1e-4, atol=1e-4)
    assert clip.confidence is not None and clip.confidence.shape == clip.depth.shape
    whole = posed_clip(photographs.folder, WINDOW, KnownDepth(photographs.depth, points=500), views="clip")
    assert whole.depth is not None
    torch.testing.assert_close(whole.depth, clip.depth, rtol=1e-4, atol=1e-4)
    assert not clip_task(clip, EvaluationConfig()).inputs.measured, "an estimator's depth gives way to an alignment"


def test_an_estimator_of_points_gives_no_depth(photographs: Photographs) -> None:
    photographs.write_poses()

    class Points(KnownDepth):
        dense_maps = False

    clip = posed_clip(photographs.folder, WINDOW, Points(photographs.depth[[0, VIEWS - 1]], points=500))
    assert clip.depth is None and clip.confidence is None and clip.cloud is not None


@pytest.mark.parametrize(("degrees", "suspicious"), [(0.0, False), (20.0, True)])
def test_poses_of_an_estimator_are_aligned_and_the_residual_is_kept(
    degrees: float, suspicious: bool, photographs: Photographs, caplog: pytest.LogCaptureFixture
) -> None:
    photographs.write_poses()
    estimator = Foreign(photographs, degrees)
    with caplog.at_level(logging.WARNING):
        clip = posed_clip(photographs.folder, WINDOW, estimator, poses="estimated")
    assert [(views, cameras) for views, cameras in estimator.calls] == [(2, None)]  # the inputs, without their poses
    assert clip.alignment is not None and clip.alignment.suspicious is suspicious
    assert ("do NOT agree" in caplog.text and "photo12.png" in caplog.text) is suspicious
    assert "poses of its own, aligned" in clip.geometry
    if not suspicious:
        assert on_the_surface(clip, photographs) > 0.8  # in the world of the data set, in its units


def test_options_that_contradict(photographs: Photographs) -> None:
    photographs.write_poses()
    with pytest.raises(ConfigurationError, match="--estimator"):
        posed_clip(photographs.folder, WINDOW, poses="estimated")
    with pytest.raises(ConfigurationError, match="belong to a scene"):
        next(evaluation_clips(photographs.folder, None, WINDOW, None, ColmapEstimator()))


def test_messages_name_the_photographs(photographs: Photographs) -> None:
    pytest.importorskip("pycolmap")
    Image.new("RGB", (WIDTH, HEIGHT), (90, 90, 90)).save(photographs.folder / "images" / "photo10.png")
    with pytest.raises(BadSceneError, match=r"image 2 \(0\).*image 2 is .*photo10\.png"):
        scene_of_photographs(photograph_files(photographs.folder), ColmapEstimator())
    Image.new("RGB", (WIDTH, 100)).save(photographs.folder / "images" / "photo9.png")
    with pytest.raises(BadSceneError, match=r"photo9\.png is 320x100"):
        scene_of_photographs(photograph_files(photographs.folder), ColmapEstimator())
    with pytest.raises(BadSceneError, match=r"photo8\.png.*at least two"):
        scene_of_photographs(photograph_files(photographs.folder)[:1], ColmapEstimator())


def test_too_few_photographs_and_none(photographs: Photographs, tmp_path: Path) -> None:
    with pytest.raises(BadSceneError, match="has 5 photographs"):
        posed_clip(photographs.folder, SceneWindow(frames=9))
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadDataError, match="empty"):
        posed_clip(tmp_path / "empty", WINDOW)


def test_large_photographs_are_reduced_for_the_estimator_alone(
    photographs: Photographs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(found_poses, "MAX_SIDE", 80)
    photographs.write_poses()
    seen: list[tuple[int, ...]] = []

    class Records:
        def estimate(self, images: Tensor, cameras: Cameras | None = None) -> Reconstruction:
            seen.append(tuple(images.shape))
            if cameras is None:
                cameras = resize_cameras(photographs.cameras, *images.shape[-2:])
            depth = torch.full((len(images), *images.shape[-2:]), 3.0)
            return KnownDepth(depth, points=200).estimate(images, cameras.to(dtype=torch.float32))

    posed_clip(photographs.folder, WINDOW, Records())
    (photographs.folder / "cameras.json").unlink()
    found = scene_of_photographs(photograph_files(photographs.folder), Records()).scene
    assert seen == [(2, 3, 60, 80), (VIEWS, 3, 60, 80)]
    # the intrinsics are those of the photographs as they are
    torch.testing.assert_close(found.cameras.intrinsics.float(), photographs.cameras.intrinsics)
    torch.testing.assert_close(found.cameras.world_to_camera.float(), photographs.cameras.world_to_camera)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_turned_upright(orientation: int, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (6, 9, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(read_upright(tmp_path / "a.png", "a.png"), upright)


# --- reconx geometry


def test_geometry_writes_a_scene_that_every_command_reads(
    photographs: Photographs, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pycolmap")
    out = tmp_path / "scene"
    focal = float(photographs.cameras.intrinsics[0, 0, 0])
    estimator = "reconx_pl.geometry.estimators.colmap.ColmapEstimator"
    main(["geometry", str(photographs.folder), str(out), "--estimator", estimator, "--estimator.focal", str(focal)])
    assert "5 views" in " ".join(capfd.readouterr().err.split())
    scene = next(read_scenes(out))
    assert isinstance(scene, RawScene) and scene.cloud is not None
    assert (scene.cameras.intrinsics[:, 0, 0] - focal).abs().max() < 1e-3
    quality = quality_of(scene.cameras, photographs)
    assert max(quality.rotation_degrees) < 0.5 and not quality.suspicious
    assert scene.cloud.confidence.min() > 1 and scene.cloud.confidence.max() > 3  # confidence survives the file
    assert np.array_equal(scene.load_image(2), read_upright(photographs.folder / "images" / "photo10.png", ""))
    clip = posed_clip(out, WINDOW)
    assert clip.cloud is not None and clip.geometry == ""
    with pytest.raises(ConfigurationError, match="is there already"):
        find_geometry(photographs.folder, out)


def test_geometry_keeps_known_poses(photographs: Photographs, tmp_path: Path) -> None:
    pytest.importorskip("pycolmap")
    photographs.write_poses()
    made = find_geometry(photographs.folder, tmp_path / "scene")
    scene = read_posed(tmp_path / "scene")
    assert (made.views, made.points) == (VIEWS, len(scene.cloud or []))
    torch.testing.assert_close(scene.cameras.world_to_camera.float(), photographs.cameras.world_to_camera)


def test_a_bad_confidence_is_named(tmp_path: Path) -> None:
    points = np.zeros((3, 3), np.float32)
    for confidence in (np.ones(2), np.array([1.0, 0.5, 2.0])):
        np.savez(tmp_path / "points.npz", xyz=points, rgb=points.astype(np.uint8), confidence=confidence)
        with pytest.raises(BadDataError, match=r"points\.npz: confidence"):
            read_points(tmp_path / "points.npz")


def test_evaluate_takes_an_estimator_by_its_class_path() -> None:
    parser = build_evaluate_parser()
    name = "reconx_pl.geometry.estimators.colmap.ColmapEstimator"
    line = ["--model", "a", "--out", "b", "--scene", "c", "--estimator", name, "--estimator.min_angle", "1"]
    chosen = parser.instantiate_classes(parser.parse_args([*line, "--poses", "estimated", "--views", "clip"]))
    assert isinstance(chosen.estimator, ColmapEstimator) and chosen.estimator.min_angle == 1
    assert (chosen.poses, chosen.views) == ("estimated", "clip")
    assert parser.instantiate_classes(parser.parse_args(["--model", "a", "--out", "b"])).estimator is None
