"""The package in five lines: ``ReconX.from_pretrained(...).reconstruct(images)``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import mkdtemp

from PIL import Image

from reconx_pl.devices import chosen_device
from reconx_pl.diffusion.pipeline import SamplingConfig
from reconx_pl.errors import ConfigurationError
from reconx_pl.files.atomic import atomic_write
from reconx_pl.geometry.default_estimator import GeometryName, named_estimator
from reconx_pl.geometry.estimators.base import PointMapEstimator
from reconx_pl.reconstruction.files import GIVEN
from reconx_pl.reconstruction.run import reconstruct
from reconx_pl.reconstruction.settings import ReconstructionConfig
from reconx_pl.reconstruction.view_generator import ViewGeneratorSource
from reconx_pl.splatting.io.scene_files import load_scene, save_scene
from reconx_pl.training.models import model_source
from reconx_pl.types import Cameras, Gaussians, Progress

_NOT_PNG = ("CMYK", "YCbCr", "LAB", "HSV", "RGBX")  # modes of colours that PNG cannot hold
Images = str | Path | Sequence[str | Path | Image.Image]


@dataclass(frozen=True)
class Scene:
    """A reconstructed scene.

    Attributes:
        gaussians: N Gaussians, on the CPU.
        cameras: of the photographs in the order of visiting.
        folder: what ``reconx reconstruct`` leaves in it: scene.ply, cameras.json, report.html and more.
    """

    gaussians: Gaussians
    cameras: Cameras
    folder: Path

    def save(self, path: str | Path, overwrite: bool = False) -> Path:
        """Write the Gaussians to a .ply or .splat file.

        Raises:
            ConfigurationError: another ending, or the file is there.
        """
        return save_scene(self.gaussians, Path(path), overwrite)


class ReconX:
    """Photographs to scenes (Liu et al., ReconX, 2024).

    Args:
        view_generator: generates between photographs; None fits to the photographs alone.
        geometry: who finds cameras and points: "da3-base", "da3-small", "dust3r", "colmap", or "auto", which never
            takes DUSt3R (``named_estimator``); or an estimator.
        config: defaults of ``reconstruct``.
        device: "auto", "cpu" or "cuda".
    """

    def __init__(
        self,
        view_generator: ViewGeneratorSource | None,
        geometry: GeometryName | PointMapEstimator = "auto",
        config: ReconstructionConfig | None = None,
        device: str = "auto",
    ) -> None:
        self.view_generator = view_generator
        self.geometry = geometry
        self.config = config or ReconstructionConfig()
        self.device = chosen_device(device)

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | None,
        *,
        geometry: GeometryName | PointMapEstimator = "auto",
        config: ReconstructionConfig | None = None,
        sampling: SamplingConfig | None = None,
        device: str = "auto",
    ) -> ReconX:
        """With a video model, which is loaded when something has to be generated.

        Args:
            model: folder of a training run, a checkpoint in it, a folder of ``reconx weights convert``, a release,
                or ``owner/name`` on the hub; None goes without generation.
            geometry: see the class.
            config: see the class.
            sampling: in place of the model's own settings.
            device: see the class.

        Raises:
            MissingWeightsError: no such model.
        """
        chosen = chosen_device(device)
        view_generator = None if model is None else model_source(model, sampling, chosen)
        return cls(view_generator, geometry, config, device)

    def reconstruct(
        self,
        images: Images,
        out: str | Path | None = None,
        *,
        config: ReconstructionConfig | None = None,
        path: str | Path | None = None,
        overwrite: bool = False,
        progress: Progress | None = None,
    ) -> Scene:
        """Photographs to a scene; see ``reconstruction.run.reconstruct`` for stages and errors.

        Args:
            images: a folder of photographs, a video, or 1 to 64 of image files and PIL images.
            out: folder of the results; what it holds of the same photographs is not done again. None makes a new
                temporary one.
            config: in place of the constructor's.
            path: along which frames are generated, in place of ``config.generation.path``: one of its words, or a file
                of cameras.
            overwrite: ``out`` may hold the reconstruction of other photographs.
            progress: counts what the stage at hand counts.
        """
        folder = Path(mkdtemp(prefix="reconx-")) if out is None else Path(out)
        estimator = named_estimator(self.geometry, self.device) if isinstance(self.geometry, str) else self.geometry
        chosen = config or self.config
        if path is not None:
            chosen = replace(chosen, generation=replace(chosen.generation, path=str(path)))
        made = reconstruct(
            _files(images, folder),
            folder,
            chosen,
            estimator,
            self.view_generator,
            device=self.device,
            overwrite=overwrite,
            progress=progress,
        )
        assert made.scene is not None and made.views is not None
        return Scene(load_scene(made.scene), made.views.scene.cameras, folder)


def _files(images: Images, folder: Path) -> list[Path]:
    """Files of the images; those that are in memory are written to ``folder/given``."""
    if isinstance(images, str | Path):
        return [Path(images)]
    files = []
    for number, image in enumerate(images):
        if isinstance(image, str | Path):
            files.append(Path(image))
        elif isinstance(image, Image.Image):
            path = folder / GIVEN / f"image_{number:02d}.png"
            picture = image.convert("RGB") if image.mode in _NOT_PNG else image
            try:
                with atomic_write(path) as partial:
                    picture.save(partial, exif=image.getexif())
            except OSError as error:  # of a mode that PNG has not
                raise ConfigurationError(
                    f"image {number} of mode {image.mode} cannot be kept as PNG ({error}); convert it to RGB"
                ) from error
            files.append(path)
        else:
            raise ConfigurationError(f"image {number} is a {type(image).__name__}: give a path or a PIL image")
    return files
