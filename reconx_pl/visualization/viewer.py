"""A scene of Gaussians in the browser, by viser (``pip install 'reconx_pl[viewer]'``).

viser draws base colours only: spherical harmonics above degree 0, the view dependence, are not shown.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from reconx_pl.errors import BadSceneError, ConfigurationError, MissingDependencyError
from reconx_pl.geometry.camera_paths import focus_point, up_axis
from reconx_pl.splatting.io.splat import base_colors, by_importance
from reconx_pl.types import Cameras, Gaussians

logger = logging.getLogger(__name__)

_WIDTH = 0.1  # of the median Gaussian in the browser; viser sends covariances as float16: from 2.4e-4 to 255 wide
_WIDEST = 200.0
_FAR = 1000.0  # viser's default
_FRUSTUM = (255, 190, 60)


class Viewer:
    """A running server; it serves until it is closed.

    Args:
        gaussians: the scene, on any device.
        cameras: views to draw as pyramids and to jump to; the browser starts at the first, and its up axis is theirs.
            Without them it starts before the scene, with -y up.
        host: address to listen on; the default is reached from this machine alone.
        port: 0 takes any that is free.
        max_gaussians: of more, the most important (opacity times volume) are shown, with a log line.

    Raises:
        MissingDependencyError: viser is not installed.
        ConfigurationError: the port is taken, the address is not this machine's.
        BadSceneError: the scene has no Gaussians, values that are not finite, or a rotation of length zero.
    """

    def __init__(
        self,
        gaussians: Gaussians,
        cameras: Cameras | None = None,
        host: str = "127.0.0.1",
        port: int = 8080,
        max_gaussians: int | None = None,
    ) -> None:
        try:
            import viser
        except ImportError as error:
            raise MissingDependencyError("the viewer needs viser: pip install 'reconx_pl[viewer]'") from error
        if max_gaussians is not None and max_gaussians < 1:
            raise ConfigurationError(f"max_gaussians must be at least 1, got {max_gaussians}")
        if len(gaussians) == 0:
            raise BadSceneError("there are no Gaussians to show")
        shown = _most_important(gaussians, max_gaussians)
        # The browser has its own unit of length, in which covariances fit into float16.
        self.unit = _WIDTH / float(shown.log_scales.mean(dim=1).median().exp())
        centers = shown.means.numpy() * self.unit
        usable = math.isfinite(self.unit) and np.isfinite(centers).all()
        if not usable or not bool((shown.quaternions.norm(dim=1) > 0).all()):
            raise BadSceneError("the scene has NaN or infinite values, or a rotation of length zero; fit it again")
        self._poses: list[_Pose] = []
        _check_free(host, port)
        with _unheard():
            self._server: Any = viser.ViserServer(host=host, port=port, label="ReconX", verbose=False)
        try:
            self.port: int = self._server.get_port()
            if port not in (0, self.port):  # viser takes the next one where another program was faster
                raise ConfigurationError(_taken(host, port))
            self.url = f"http://{host}:{self.port}"
            self._server.gui.configure_theme(show_share_button=False)  # it would pass the scene through a foreign host
            backdrop = (shown.background.clamp(0, 1) * 255).round().byte().numpy()
            self._server.scene.set_background_image(np.tile(backdrop, (2, 2, 1)), format="png")
            self._server.scene.add_gaussian_splats(
                "/scene",
                centers=centers,
                covariances=_covariances(shown, self.unit),
                rgbs=base_colors(shown).numpy(),
                opacities=shown.opacity_logits.sigmoid().numpy()[:, None],
            )
            middle = np.median(centers, axis=0)
            extent = float(np.median(np.linalg.norm(centers - middle, axis=1)))
            if cameras is None or len(cameras) == 0:
                self._start(middle - np.array([0, 0, 3 * extent]), middle, np.array([0.0, -1.0, 0.0]), extent)
            else:
                self._add_cameras(cameras.to("cpu", torch.float64), shown, extent)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop serving."""
        with _unheard():
            self._server.stop()

    def jump(self, view: int, client: Any = None) -> None:
        """Look through a camera, in one browser or in all that are connected.

        Raises:
            ConfigurationError: there is no such camera.
        """
        if not 0 <= view < len(self._poses):
            raise ConfigurationError(f"there is no camera {view}, the viewer has {len(self._poses)}")
        pose = self._poses[view]
        for each in self._server.get_clients().values() if client is None else [client]:
            with each.atomic():
                each.camera.fov = pose.angle
                each.camera.position, each.camera.wxyz = pose.position, pose.rotation
                each.camera.look_at = pose.target

    def __enter__(self) -> Viewer:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _start(self, position: np.ndarray, look_at: np.ndarray, up: np.ndarray, extent: float) -> None:
        self._server.scene.set_up_direction(tuple(up.tolist()))
        camera = self._server.initial_camera
        camera.position, camera.look_at = tuple(position.tolist()), tuple(look_at.tolist())
        camera.far = max(_FAR, 20 * extent)

    def _add_cameras(self, cameras: Cameras, shown: Gaussians, extent: float) -> None:
        depth = _depth_of_interest(cameras, shown) * self.unit
        self._poses = [_pose(cameras[view], self.unit, depth) for view in range(len(cameras))]
        first = self._poses[0]
        self._start(first.position, first.target, up_axis(cameras).numpy(), max(extent, depth))
        self._server.initial_camera.fov = first.angle
        frustums = []
        for view, pose in enumerate(self._poses):
            frustum = self._server.scene.add_camera_frustum(
                f"/cameras/{view}",
                fov=pose.angle,
                aspect=cameras.width / cameras.height,
                scale=0.05 * depth,
                thickness=1.5,
                thickness_units="screen",
                color=_FRUSTUM,
                wxyz=pose.rotation,
                position=pose.position,
            )
            frustum.on_click(lambda event, view=view: self.jump(view, event.client))
            frustums.append(frustum)
        gui = self._server.gui
        number = gui.add_slider("camera", min=0, max=max(len(cameras) - 1, 1), step=1, initial_value=0)
        number.disabled = len(cameras) == 1
        number.on_update(lambda event: self.jump(int(number.value), event.client))
        gui.add_button("look through it").on_click(lambda event: self.jump(int(number.value), event.client))
        box = gui.add_checkbox("show cameras", initial_value=True)

        def show(_: Any) -> None:
            for frustum in frustums:
                frustum.visible = box.value

        box.on_update(show)


@dataclass(frozen=True)
class _Pose:
    """A camera in the browser's unit of length: position [3], wxyz [4] of camera to world, what it looks at [3], and
    its vertical angle of view, radians."""

    position: np.ndarray
    rotation: np.ndarray
    target: np.ndarray
    angle: float


def _pose(camera: Cameras, unit: float, depth: float) -> _Pose:
    """``depth`` is in the browser's unit."""
    to_world = camera.camera_to_world[0].numpy()
    position = to_world[:3, 3] * unit
    x, y, z, w = Rotation.from_matrix(to_world[:3, :3]).as_quat()
    angle = 2 * math.atan(camera.height / (2 * float(camera.intrinsics[0, 1, 1])))
    return _Pose(position, np.array([w, x, y, z]), position + depth * to_world[:3, 2], angle)


def _most_important(gaussians: Gaussians, count: int | None) -> Gaussians:
    """At most ``count`` of the Gaussians, on the CPU, float32."""
    keep = slice(None) if count is None or count >= len(gaussians) else by_importance(gaussians)[:count].cpu()
    if not isinstance(keep, slice):
        logger.info("showing the %d most important of %d Gaussians", count, len(gaussians))
    parts = (gaussians.means, gaussians.quaternions, gaussians.log_scales, gaussians.opacity_logits, gaussians.sh)
    means, quaternions, log_scales, logits, sh = (part.detach().float().cpu()[keep] for part in parts)
    return Gaussians(means, quaternions, log_scales, logits, sh, gaussians.background.detach().float().cpu())


def _covariances(gaussians: Gaussians, unit: float) -> np.ndarray:
    """R S S R^T in the browser's unit of length, [N, 3, 3] float32."""
    rotation = Rotation.from_quat(gaussians.quaternions[:, [1, 2, 3, 0]].double().numpy()).as_matrix()
    widths = (gaussians.log_scales.double().exp() * unit).clamp(max=_WIDEST).numpy()
    spread = rotation * widths[:, None, :]
    return (spread @ spread.transpose(0, 2, 1)).astype(np.float32)


def _depth_of_interest(cameras: Cameras, gaussians: Gaussians) -> float:
    """How far before the first camera the browser turns around; world units."""
    first = cameras.world_to_camera[0]
    try:
        depth = float(first[2, :3] @ focus_point(cameras, gaussians.means) + first[2, 3])
    except ConfigurationError:
        depth = 0.0  # cameras that look outward
    return depth if depth > 0 else float((gaussians.means.double() - cameras.centers[0]).norm(dim=1).median())


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """viser prints when it starts and stops, whatever it is told; saying the address is the caller's."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def _check_free(host: str, port: int) -> None:
    """Raise ConfigurationError unless the address can be listened on; viser would look for another for ever."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, OverflowError) as error:
        raise ConfigurationError(f"{_taken(host, port)} ({error})") from error


def _taken(host: str, port: int) -> str:
    return f"cannot serve on {host}, port {port}: taken, or not an address of this machine; choose another --port"
