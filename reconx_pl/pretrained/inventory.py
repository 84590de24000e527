"""The pretrained weights that this package knows: which are here, where, under what licence, and are they whole?

Nothing here asks the network. Expected checksums are those that were written when the weights came: the record beside
a fetched file, the metadata of the LPIPS backbones, the list in a folder of ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from reconx_pl.diffusion.weights.releases import GEOMETRY_RELEASES, RELEASES, HubFile
from reconx_pl.errors import BadWeightsError, ConfigurationError, MissingWeightsError
from reconx_pl.files.checksums import SUMS, differing, file_sha256, read_sums, remembered_sha256
from reconx_pl.files.weights import FOLDER_FILE, SHIPPED
from reconx_pl.metrics.lpips_weights import FILE_NAMES as LPIPS_FILES
from reconx_pl.metrics.lpips_weights import Net, backbone_bytes, cache_folder, find_backbone, load_backbone
from reconx_pl.pretrained.fetch import recorded_sha256
from reconx_pl.types import Progress

FOLDER = Path("weights")
_LPIPS = "lpips"
_LICENCE_UNREAD = "its repository's LICENSE file, which this package has not read"


@dataclass(frozen=True)
class Weights:
    """Weights that are here or could be.

    Args:
        name: unique in the list.
        fetched_as: argument of ``reconx weights fetch``; empty for what cannot be fetched.
        purpose: what they are for.
        licence: in words, with its most important limit.
        commercial: False where the licence forbids commercial use.
        bytes: of the file, or of what would be fetched; None where that is not known.
        place: the file, or for a converted model the folder; where it would be if it is not there.
        present: whether it is there.
        net: of an LPIPS backbone.
    """

    name: str
    fetched_as: str
    purpose: str
    licence: str
    commercial: bool
    bytes: int | None
    place: Path
    present: bool
    net: Net | None = None

    @property
    def fetch_command(self) -> str:
        """What gets them; empty for what cannot be fetched."""
        if not self.fetched_as:
            return ""
        elsewhere = "" if self.net or self.place.parent == FOLDER else f" --folder {self.place.parent}"
        return f"reconx weights fetch {self.fetched_as}{elsewhere}"

    @property
    def partial(self) -> bool:
        """Whether a download was begun."""
        return not self.present and any(self.place.parent.glob(f"{self.place.name}.*.partial"))


@dataclass(frozen=True)
class Verdict:
    """What is known of the weights' bytes.

    Args:
        status: ``unverified``: there is a checksum, and the file was not read since it was last written;
            ``unrecorded``: no checksum is known here.
        text: in words.
        remedy: a command, where something is wrong.
    """

    status: Literal["verified", "unverified", "unrecorded", "damaged", "absent"]
    text: str
    remedy: str = ""


def inventory(folder: Path = FOLDER) -> list[Weights]:
    """The models of this package, what ``reconx weights fetch`` knows, then the converted models in ``folder``.

    Args:
        folder: where fetched and converted weights lie.
    """
    folder = Path(folder)
    backbones: tuple[Net, ...] = ("vgg", "alex")
    known = [_shipped(name, place) for name, place in SHIPPED.items()]
    known += [_backbone(net) for net in backbones]
    known += [_released(name, release, folder) for name, release in (GEOMETRY_RELEASES | RELEASES).items()]
    return known + [_converted(found.parent) for found in sorted(folder.glob(f"*/{FOLDER_FILE}"))]


def chosen(names: Sequence[str], folder: Path = FOLDER) -> list[Weights]:
    """The weights of those names, or, for a path, what lies there; without names everything that is here.

    Raises:
        ConfigurationError: a name that is neither known nor a path.
    """
    known = inventory(folder)
    if not names:
        return [weights for weights in known if weights.present]
    found = []
    for name in names:
        matching = [weights for weights in known if name in (weights.name, weights.fetched_as)]
        found += matching or [_at(Path(name), known)]
    return found


def examine(weights: Weights, progress: Progress | None = None, read: bool = True) -> Verdict:
    """Compare weights with their checksums.

    Args:
        weights: which.
        progress: called with bytes done and bytes of the file at hand.
        read: False takes what an earlier reading of the unchanged file gave, and reads the small files only.
    """
    if not weights.present:
        begun = "; a download was begun, the command goes on with it" if weights.partial else ""
        return Verdict("absent", f"not at {weights.place}{begun}", weights.fetch_command)
    try:
        return _examined(weights, progress, read)
    except OSError as error:
        return Verdict("damaged", f"{weights.place} cannot be read ({error.strerror})", f"chmod -R u+r {weights.place}")


def _examined(weights: Weights, progress: Progress | None, read: bool) -> Verdict:
    if weights.net is not None:
        return _examine_backbone(weights.net, weights.place)
    folder, digests, missing = _expected(weights)
    if not digests:
        return Verdict("unrecorded", *missing)
    if read:
        wrong = list(differing(folder, digests, lambda path: file_sha256(path, progress)))
    else:
        there = {name: folder / name for name in digests if (folder / name).is_file()}
        measured = {path: remembered_sha256(path) for path in there.values()}
        if len(there) == len(digests) and None in measured.values():
            return Verdict("unverified", "not read since it was written; `reconx weights verify` does")
        wrong = list(differing(folder, digests, lambda path: measured[path] or digests[path.name]))
    if wrong:
        remedy = weights.fetch_command or "convert the checkpoint again"
        return Verdict("damaged", f"{folder}: {'; '.join(wrong)}", f"move it away, then {remedy}")
    return Verdict("verified", f"SHA-256 {' and '.join(digest[:12] for digest in digests.values())}")


def _expected(weights: Weights) -> tuple[Path, dict[str, str], tuple[str, str]]:
    """The folder, the digests of the files in it, and what to say and do where there are none."""
    if weights.place.is_dir():
        sums = weights.place / SUMS
        digests = read_sums(sums) if sums.is_file() else {}
        missing = (f"the folder has no {SUMS}", f"sha256sum config.json {FOLDER_FILE} > {SUMS}, in that folder")
        return weights.place, digests, missing
    recorded = recorded_sha256(weights.place)
    digests = {weights.place.name: recorded} if recorded else {}
    fetch = weights.fetch_command or "reconx weights fetch, if it came from there,"
    missing = ("no checksum beside it", f"{fetch} asks the hub for it; with --sha256 it needs no network")
    return weights.place.parent, digests, missing


def _examine_backbone(net: Net, path: Path) -> Verdict:
    try:
        load_backbone(net, path)
    except BadWeightsError as error:
        return Verdict("damaged", str(error), f"delete {path}, then reconx weights fetch {_LPIPS}")
    return Verdict("verified", "its checksum is right")


def _shipped(name: str, place: Path) -> Weights:
    present = place.is_file()
    size = place.stat().st_size if present else None
    purpose = "small model that generates between photographs, the default of reconx reconstruct"
    return Weights(name, "", purpose, "Apache-2.0", True, size, place, present)


def _backbone(net: Net) -> Weights:
    try:
        place, present = find_backbone(net), True
    except MissingWeightsError:
        place, present = cache_folder() / LPIPS_FILES[net], False
    return Weights(
        f"{_LPIPS}-{net}",
        _LPIPS,
        {"vgg": "LPIPS of the Gaussian fit and of the scores", "alex": "LPIPS of the fit where it has to be fast"}[net],
        "torchvision's (BSD-3-Clause); trained on ImageNet",
        True,
        place.stat().st_size if present else backbone_bytes(net),
        place,
        present,
        net,
    )


def _released(name: str, release: HubFile, folder: Path) -> Weights:
    place = folder / release.saved_as
    present = place.is_file()
    stated = None if release.gigabytes is None else round(release.gigabytes * 1e9)
    return Weights(
        name,
        name,
        release.purpose,
        release.notice or release.licence or _LICENCE_UNREAD,
        "-nc-" not in f"{release.licence}-",
        place.stat().st_size if present else stated,
        place,
        present,
    )


def _converted(folder: Path) -> Weights:
    size = (folder / FOLDER_FILE).stat().st_size
    return Weights(folder.name, "", "converted model", "see its README.md", True, size, folder, True)


def _at(path: Path, known: Sequence[Weights]) -> Weights:
    for weights in known:
        if weights.present and weights.place.resolve() == path.resolve():
            return weights
    if (path / FOLDER_FILE).is_file():
        return _converted(path)
    if path.is_file():
        return Weights(path.name, "", "a file", "not known here", True, path.stat().st_size, path, True)
    names = ", ".join(dict.fromkeys(weights.fetched_as or weights.name for weights in known))
    raise ConfigurationError(f"{path}: neither weights that are known here ({names}) nor a file or converted folder")
