"""A scene of Gaussians in the browser, served by viser, or as one page that needs no server."""

from __future__ import annotations

import contextlib
import io
import logging
import socket
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from torch import Tensor

from reconx_pl.errors import ConfigurationError
from reconx_pl.files.atomic import write_whole
from reconx_pl.types import Cameras, Gaussians
from reconx_pl.visualization.splat_scene import ShownScene, show_scene

_HOME = "127.0.0.1"


class Viewer:
    """A running server; it serves until it is closed.

    Args:
        gaussians: the scene, on any device.
        cameras: views to draw as pyramids and to jump to; see ``show_scene``.
        host: address to listen on; the default is reached from this machine alone.
        port: 0 takes any that is free.
        max_gaussians: of more, the most important (opacity times volume) are shown, with a log line.

    Raises:
        ConfigurationError: the port is taken, the address is not this machine's.
        BadSceneError: the scene has no Gaussians, values that are not finite, or a rotation of length zero.
    """

    def __init__(
        self,
        gaussians: Gaussians,
        cameras: Cameras | None = None,
        host: str = _HOME,
        port: int = 8080,
        max_gaussians: int | None = None,
    ) -> None:
        self._server = _server(host, port)
        try:
            self.port: int = self._server.get_port()
            if port not in (0, self.port):  # viser takes the next one where another program was faster
                raise ConfigurationError(_taken(host, port))
            self.url = f"http://{host}:{self.port}"
            self._server.gui.configure_theme(show_share_button=False)  # it would pass the scene through a foreign host
            self._shown = show_scene(self._server, gaussians, cameras, max_gaussians=max_gaussians)
            self.unit = self._shown.unit
            if self._shown.poses:
                self._add_controls(self._shown)
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
        poses = self._shown.poses
        if not 0 <= view < len(poses):
            raise ConfigurationError(f"there is no camera {view}, the viewer has {len(poses)}")
        pose = poses[view]
        for each in self._server.get_clients().values() if client is None else [client]:
            with each.atomic():
                each.camera.fov = pose.angle
                each.camera.position, each.camera.wxyz = pose.position, pose.rotation
                each.camera.look_at = pose.target

    def __enter__(self) -> Viewer:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _add_controls(self, shown: ShownScene) -> None:
        for view, frustum in enumerate(shown.frustums):
            frustum.on_click(lambda event, view=view: self.jump(view, event.client))
        gui, count = self._server.gui, len(shown.poses)
        number = gui.add_slider("camera", min=0, max=max(count - 1, 1), step=1, initial_value=0)
        number.disabled = count == 1
        number.on_update(lambda event: self.jump(int(number.value), event.client))
        gui.add_button("look through it").on_click(lambda event: self.jump(int(number.value), event.client))
        box = gui.add_checkbox("show cameras", initial_value=True)

        def show(_: Any) -> None:
            for frustum in shown.frustums:
                frustum.visible = box.value

        box.on_update(show)


def write_scene_page(
    path: Path,
    gaussians: Gaussians,
    cameras: Cameras | None = None,
    *,
    title: str,
    images: Tensor | None = None,
    frames: Cameras | None = None,
    max_gaussians: int | None = 200_000,
) -> None:
    """Write one HTML file that shows the scene by a double click, without a server or a network.

    Args:
        path: of the file.
        gaussians, cameras, images, frames, max_gaussians: see ``show_scene``. A Gaussian takes about 43 bytes of the
            file.
        title: of the page.

    Raises:
        BadSceneError, ConfigurationError: see ``show_scene``.
    """
    server = _server(_HOME, 0)  # viser makes the page from a server's scene; nobody is served
    try:
        show_scene(server, gaussians, cameras, max_gaussians=max_gaussians, images=images, frames=frames)
        page: str = server.scene.as_html()
    finally:
        with _unheard():
            server.stop()
    before, _, rest = page.partition("<title>")
    after = rest.partition("</title>")[2]
    write_whole(path, f"{before}<title>{escape(title)}</title>{after}".encode())


def _server(host: str, port: int) -> Any:
    import viser  # takes a second, which is wanted here alone

    _check_free(host, port)
    logging.getLogger("websockets").setLevel(logging.WARNING)  # else it says that a server opens and closes
    with _unheard():
        return viser.ViserServer(host=host, port=port, label="ReconX", verbose=False)


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
