"""Features and matches of a set of images, by pycolmap, in a database that lives in a folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from reconx_pl.errors import MissingDependencyError
from reconx_pl.geometry.cameras import fundamental_matrix
from reconx_pl.geometry.estimators.lenses import Lenses
from reconx_pl.geometry.estimators.pairs import PairGraph, connected_parts
from reconx_pl.types import Cameras

Matching = Literal["exhaustive", "sequential"]
Pairs = dict[tuple[int, int], np.ndarray]  # views (i, j), i < j -> [M, 2, 2] pixels: match, view, (x, y)
MIN_MATCHES = 15  # that agree with one epipolar geometry: COLMAP's own bound, below which a pair counts as chance
_GUESS = 1.2  # COLMAP's focal length where none is known, in longer sides of the image


def load_pycolmap() -> ModuleType:
    """The optional package.

    Raises:
        MissingDependencyError: it is not installed, or its library does not load.
    """
    try:
        import pycolmap
    except ImportError as error:
        raise MissingDependencyError(
            f"structure from motion needs pycolmap, which cannot be imported ({error}); "
            "install it: pip install 'pycolmap >= 4.2' (ready for Linux on x86-64, macOS and Windows)"
        ) from error
    return pycolmap


@contextmanager
def quiet(pycolmap: ModuleType) -> Iterator[None]:
    """Keep COLMAP's own log, which it writes to stderr past Python, to what aborts the process."""
    before = pycolmap.logging.minloglevel
    pycolmap.logging.minloglevel = int(pycolmap.logging.FATAL)
    try:
        yield
    finally:
        pycolmap.logging.minloglevel = before


class ImageMatches:
    """SIFT features of V images and the matches between them.

    View i has the COLMAP image ``i + 1``.

    Args:
        folder: empty; images and database are written into it.
        images: [V, 3, H, W] in [0, 1].
        seed: of COLMAP's random choices.
        threads: with more than one the order of work, and with it the result, may change from run to run.
    """

    def __init__(self, folder: Path, images: Tensor, seed: int, threads: int) -> None:
        self.pycolmap = load_pycolmap()
        self.images, self.database = folder / "images", folder / "database.db"
        self.views, _, self.height, self.width = images.shape
        self.seed, self.threads = seed, threads
        self.names = [f"{view:06d}.png" for view in range(self.views)]
        self.images.mkdir()
        pixels = (images.detach().cpu().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
        for name, picture in zip(self.names, pixels, strict=True):
            Image.fromarray(picture).save(self.images / name, compress_level=1)

    def write_lenses(self, lenses: Lenses, model: str) -> dict[int, float]:
        """Put a camera for every lens into the database, before the features; known focal lengths by its number.

        A focal length that is not known is guessed as COLMAP does, 1.2 x the longer side.

        Args:
            lenses: of the V views.
            model: COLMAP's name of the camera model.
        """
        colmap = self.pycolmap
        with self.opened() as database:
            owner: dict[int, int] = {}
            known: dict[int, float] = {}
            for number, (views, focal) in enumerate(lenses.cameras(), start=1):
                length = _GUESS * max(self.height, self.width) if focal is None else focal
                camera = colmap.Camera.create_from_model_name(number, model, length, self.width, self.height)
                camera.has_prior_focal_length = focal is not None
                database.write_camera(camera, use_camera_id=True)
                rig = colmap.Rig(rig_id=number)
                rig.add_ref_sensor(camera.sensor_id)
                database.write_rig(rig, use_rig_id=True)
                owner |= dict.fromkeys(views, number)
                if focal is not None:
                    known[number] = focal
            for view, name in enumerate(self.names):
                image = colmap.Image(name=name, camera_id=owner[view], image_id=view + 1)
                database.write_image(image, use_image_id=True)
                frame = colmap.Frame(frame_id=view + 1, rig_id=owner[view])
                frame.add_data_id(image.data_id)
                database.write_frame(frame, use_frame_id=True)
        return known

    def cameras(self) -> list[int]:
        """Numbers of COLMAP's cameras."""
        with self.opened() as database:
            return [camera.camera_id for camera in database.read_all_cameras()]

    def extract(self, features: int, model: str, wide: bool = False) -> list[int]:
        """Find SIFT features: their number in each image.

        Args:
            features: most in an image.
            model: COLMAP's name of the camera model of images that have no camera yet, one each.
            wide: estimate the shape of their surroundings, so that they match from farther apart; slower.
        """
        colmap = self.pycolmap
        reader, extraction = colmap.ImageReaderOptions(), colmap.FeatureExtractionOptions()
        reader.camera_model = model
        extraction.sift.max_num_features = features
        extraction.sift.estimate_affine_shape = wide
        extraction.use_gpu, extraction.num_threads = False, self.threads
        colmap.extract_features(
            self.database,
            self.images,
            image_names=self.names,
            camera_mode=colmap.CameraMode.PER_IMAGE,
            reader_options=reader,
            extraction_options=extraction,
            device=colmap.Device.cpu,
        )
        with self.opened() as database:
            return [database.num_keypoints_for_image(view + 1) for view in range(self.views)]

    def match(self, matching: Matching, overlap: int, wide: bool = False) -> None:
        """Match features between images and keep what agrees with an epipolar geometry that RANSAC finds.

        Args:
            matching: every pair, or images at most ``overlap`` apart, and 1, 2, 4, ... apart.
            overlap: see ``matching``.
            wide: match again along the epipolar lines that were found, where a feature has few rivals; slower.
        """
        colmap = self.pycolmap
        options, verification = colmap.FeatureMatchingOptions(), colmap.TwoViewGeometryOptions()
        options.use_gpu, options.num_threads, options.guided_matching = False, self.threads, wide
        verification.ransac.random_seed = self.seed
        common = {
            "matching_options": options,
            "verification_options": verification,
            "device": colmap.Device.cpu,
        }
        if matching == "exhaustive":
            colmap.match_exhaustive(self.database, **common)
            return
        pairing = colmap.SequentialPairingOptions()
        pairing.overlap = overlap
        colmap.match_sequential(self.database, pairing_options=pairing, **common)

    def set_focals(self, focals: Mapping[int, float]) -> None:
        """Take focal lengths in pixels, by number of COLMAP's camera, as known, and verify all matches anew with them.

        Known lengths leave an epipolar geometry fewer ways to bend to wrong matches. Guided matches are dropped: they
        follow the lines of the first geometry, and were seen to bend a scene by 20 degrees.
        """
        colmap = self.pycolmap
        with self.opened() as database:
            for number, focal in focals.items():
                camera = database.read_camera(number)
                lengths = len(camera.focal_length_idxs())
                camera.params = [*[focal] * lengths, *camera.params[lengths:]]
                camera.has_prior_focal_length = True
                database.update_camera(camera)
            database.clear_two_view_geometries()
        verification, verifier = colmap.TwoViewGeometryOptions(), colmap.GeometricVerifierOptions()
        verification.ransac.random_seed, verifier.num_threads = self.seed, self.threads
        colmap.geometric_verification(self.database, verifier, two_view_geometry_options=verification)

    def match_by_poses(self, cameras: Cameras, matching: Matching, overlap: int, max_error: float) -> float:
        """Match features along the epipolar lines of known cameras.

        A feature has few rivals there, so that more matches pass the test against the second best than among all
        features of an image (up to twice as many where views are far apart). Pairs in which fewer than MIN_MATCHES of
        the others agree with the poses are left out.

        Args:
            cameras: V known cameras.
            matching: every pair, or images at most ``overlap`` apart.
            overlap: see ``matching``.
            max_error: Sampson distance of a match, pixels.

        Returns:
            the share of the matches found without regard to the poses that agree with them; 1 where there are none.
        """
        colmap, free, agreed = self.pycolmap, 0, 0
        sequence = PairGraph(kind="swin", window=overlap, cyclic=False, symmetric=False)
        graph = PairGraph(symmetric=False) if matching == "exhaustive" else sequence
        points, descriptors = self.features()
        with self.opened() as database:
            for i, j in sorted(tuple(sorted(edge)) for edge in graph.edges(self.views).tolist()):
                apart = descriptor_distances(descriptors[i], descriptors[j])
                beside = sampson_distances(fundamental_matrix(cameras, i, j), points[i], points[j]) > max_error
                x, y = mutual_matches(apart)
                agreeing = int((~beside[x, y]).sum())
                free, agreed = free + len(x), agreed + agreeing
                if agreeing < MIN_MATCHES:  # the images share nothing: along lines they would match by chance
                    continue
                geometry = colmap.TwoViewGeometry()
                geometry.config = int(colmap.TwoViewGeometryConfiguration.CALIBRATED)
                found = torch.stack(mutual_matches(apart.masked_fill_(beside, torch.inf)), 1)
                geometry.inlier_matches = found.numpy().astype(np.uint32)
                database.write_two_view_geometry(i + 1, j + 1, geometry)
        return agreed / free if free else 1.0

    def features(self) -> tuple[list[Tensor], list[Tensor]]:
        """Of each view the N features that ``extract`` found: pixels [N, 2] and descriptors [N, 128] of length 1."""
        with self.opened() as database:
            pixels = [torch.from_numpy(database.read_keypoints(view + 1)[:, :2].copy()) for view in range(self.views)]
            stored = [database.read_descriptors(view + 1).data.astype(np.float32) for view in range(self.views)]
        return pixels, [torch.nn.functional.normalize(torch.from_numpy(one), dim=1) for one in stored]

    def model_of(self, cameras: Cameras) -> Any:
        """A pycolmap reconstruction of known cameras without points, after features with a "PINHOLE" for each image.

        The database gets the same intrinsics.
        """
        colmap = self.pycolmap
        model = colmap.Reconstruction()
        poses, intrinsics = cameras.world_to_camera.double().cpu(), cameras.intrinsics.double().cpu()
        with self.opened() as database:
            for view, name in enumerate(self.names):
                camera = database.read_camera(database.read_image(view + 1).camera_id)
                camera.params = [float(intrinsics[view][at]) for at in ((0, 0), (1, 1), (0, 2), (1, 2))]
                camera.has_prior_focal_length = True
                database.update_camera(camera)
                model.add_camera_with_trivial_rig(camera)
                image = colmap.Image(name=name, camera_id=camera.camera_id, image_id=view + 1)
                model.add_image_with_trivial_frame(image, colmap.Rigid3d(poses[view, :3].numpy()))
        return model

    def verified(self) -> Pairs:
        """Pixels of the matches of every pair that has at least MIN_MATCHES verified ones."""
        with self.opened() as database:
            points = [database.read_keypoints(view + 1)[:, :2] for view in range(self.views)]
            pairs: Pairs = {}
            for number, geometry in zip(*database.read_two_view_geometries(), strict=True):
                i, j = (view - 1 for view in self.pycolmap.pair_id_to_image_pair(number))
                matches = geometry.inlier_matches
                if len(matches) >= MIN_MATCHES:
                    pairs[i, j] = np.stack([points[i][matches[:, 0]], points[j][matches[:, 1]]], axis=1)
        return pairs

    @contextmanager
    def opened(self) -> Iterator:
        """The database, closed at the end."""
        database = self.pycolmap.Database.open(self.database)
        try:
            yield database
        finally:
            database.close()


def sampson_distances(fundamental: Tensor, x: Tensor, y: Tensor) -> Tensor:  # [N, M] pixels
    """First-order distance of every pair of pixels x [N, 2], y [M, 2] from fulfilling y^T F x = 0.

    Hartley and Zisserman, eq. 11.9.
    """
    matrix = fundamental.float()
    one, other = (torch.cat([p, torch.ones_like(p[:, :1])], 1).float() for p in (x, y))
    lines, back = one @ matrix.T, other @ matrix  # [N, 3], [M, 3]
    slope = lines[:, :2].square().sum(1)[:, None] + back[:, :2].square().sum(1)
    return (lines @ other.T).abs_().div_(slope.sqrt_().clamp_(min=torch.finfo(torch.float32).tiny))


def descriptor_distances(x: Tensor, y: Tensor) -> Tensor:  # [N, M]
    """Euclidean distance of every pair of descriptors x [N, D], y [M, D] of length 1."""
    return (x @ y.T).mul_(-2).add_(2).clamp_(min=0).sqrt_()


def mutual_matches(apart: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns that are each other's nearest, near enough, and nearer than the second nearest by a margin.

    The bounds are COLMAP's: Lowe's ratio of 0.8, and 0.7 between descriptors of length 1.

    Args:
        apart: [N, M] distances, infinite where no match may be.
    """
    if min(apart.shape) < 2:
        empty = torch.zeros(0, dtype=torch.int64)
        return empty, empty
    near, column = apart.topk(2, dim=1, largest=False)
    rows = ((near[:, 0] <= 0.7) & (near[:, 0] < 0.8 * near[:, 1])).nonzero()[:, 0]
    columns = column[rows, 0]
    keep = apart[:, columns].argmin(0) == rows  # of few columns, as a search down all of them takes the longest
    return rows[keep], columns[keep]


def groups(views: int, pairs: Pairs) -> list[list[int]]:
    """Views that hang together by their pairs, the largest group first, in order of view within."""
    found = connected_parts(torch.tensor(list(pairs), dtype=torch.int64), views)
    return sorted(found, key=lambda group: (-len(group), group[0]))


def largest_motion(pairs: Pairs) -> float:
    """Over all pairs, the largest median distance between the two pixels of a match."""
    return max((float(np.median(np.linalg.norm(p[:, 1] - p[:, 0], axis=1))) for p in pairs.values()), default=0.0)


def as_cameras(model: Any, views: int, height: int, width: int) -> Cameras:
    """Cameras of a pycolmap reconstruction in which every view has its pose; COLMAP's convention is ours."""
    images = [model.images[view + 1] for view in range(views)]
    poses = np.tile(np.eye(4), (views, 1, 1))
    poses[:, :3] = [image.cam_from_world().matrix() for image in images]
    intrinsics = np.stack([image.camera.calibration_matrix() for image in images])
    return Cameras(torch.from_numpy(poses).float(), torch.from_numpy(intrinsics).float(), height, width)
