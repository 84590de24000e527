"""Writes one small known scene in every raw format, so that each reader can be held against the same cameras."""

from __future__ import annotations

import io
import json
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

from reconx_pl.data.formats.readers import read_scenes
from reconx_pl.data.formats.scene import RawScene
from reconx_pl.types import Cameras

HEIGHT, WIDTH, VIEWS = 48, 64, 5


def known_cameras(views: int = VIEWS, height: int = HEIGHT, width: int = WIDTH) -> Cameras:
    """Cameras of different focal lengths on a crooked path, none of them in a special position."""
    generator = np.random.default_rng(7)
    pose = np.tile(np.eye(4), (views, 1, 1))
    pose[:, :3, :3] = Rotation.from_rotvec(generator.normal(0, 0.4, (views, 3))).as_matrix()
    pose[:, :3, 3] = generator.normal(0, 1, (views, 3))
    intrinsics = np.tile(np.eye(3), (views, 1, 1))
    intrinsics[:, 0, 0] = intrinsics[:, 1, 1] = 70.0 + np.arange(views)
    intrinsics[:, 0, 2], intrinsics[:, 1, 2] = width / 2, height / 2
    return Cameras(torch.from_numpy(pose), torch.from_numpy(intrinsics), height, width)


def picture(number: int, height: int = HEIGHT, width: int = WIDTH) -> Image.Image:
    """A coloured image that differs for every number."""
    values = np.random.default_rng(number).integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)


def write_images(folder: Path, names: list[str], height: int = HEIGHT, width: int = WIDTH) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        picture(number, height, width).save(folder / name)


def numbered(count: int = VIEWS) -> list[str]:
    return [f"{number:03d}.png" for number in range(count)]


def write_video(file: Path, frames: list[np.ndarray], rate: int, degrees: int = 0) -> Path:
    """Encode frames [H, W, 3]; every tenth is a key frame, so that reading one jumps and decodes on."""
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "12", "g": "10", "preset": "veryfast"}
        if degrees:
            stream.set_display_rotation(degrees)
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return file


def write_posed(folder: Path, cameras: Cameras | None = None, **extra: object) -> Path:
    cameras = cameras or known_cameras()
    names = numbered(len(cameras))
    write_images(folder / "images", names, cameras.height, cameras.width)
    frames = [
        {
            "file": f"images/{name}",
            "w": cameras.width,
            "h": cameras.height,
            "K": cameras.intrinsics[view].tolist(),
            "c2w": cameras.camera_to_world[view].tolist(),
        }
        for view, name in enumerate(names)
    ]
    (folder / "cameras.json").write_text(json.dumps({"frames": frames, **extra}))
    return folder


def edit_json(file: Path, edit) -> None:
    """Change a JSON file in place; ``edit`` gets the content."""
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


def write_chunk(folder: Path, scenes: list[str], cameras: Cameras | None = None) -> Path:
    """A pixelSplat chunk with its index."""
    cameras = cameras or known_cameras()
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for name in scenes:
        images = []
        for view in range(len(cameras)):
            data = io.BytesIO()
            picture(view, cameras.height, cameras.width).save(data, "JPEG", quality=95)
            images.append(torch.frombuffer(bytearray(data.getvalue()), dtype=torch.uint8))
        entries.append(
            {
                "key": name,
                "url": "",
                "timestamps": torch.arange(len(cameras)) * 40_000,
                "cameras": torch.from_numpy(realestate_rows(cameras)),
                "images": images,
            }
        )
    torch.save(entries, folder / "000000.torch")
    (folder / "index.json").write_text(json.dumps({name: "000000.torch" for name in scenes}))
    return folder


def realestate_rows(cameras: Cameras) -> np.ndarray:  # [V, 18]
    rows = np.zeros((len(cameras), 18))
    intrinsics = cameras.intrinsics.numpy()
    rows[:, 0], rows[:, 2] = intrinsics[:, 0, 0] / cameras.width, intrinsics[:, 0, 2] / cameras.width
    rows[:, 1], rows[:, 3] = intrinsics[:, 1, 1] / cameras.height, intrinsics[:, 1, 2] / cameras.height
    rows[:, 6:] = cameras.world_to_camera[:, :3].reshape(-1, 12).numpy()
    return rows


def reference(scene: Path) -> RawScene:
    """What cameras.json of a folder says."""
    found = next(read_scenes(scene, "posed"))
    assert isinstance(found, RawScene)
    return found


def assert_same_cameras(one: Cameras, other: Cameras, pose: float = 1e-9, pixels: float = 1e-6) -> None:
    assert (one.height, one.width, len(one)) == (other.height, other.width, len(other))
    torch.testing.assert_close(one.world_to_camera, other.world_to_camera, atol=pose, rtol=0)
    torch.testing.assert_close(one.intrinsics, other.intrinsics, atol=pixels, rtol=0)
