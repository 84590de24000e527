"""One way to name a model: one that is shipped, a run, a checkpoint in it, a converted folder, a release, the hub."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from jsonargparse import ArgumentParser

from reconx_pl.diffusion.model import ReconXDiffusion
from reconx_pl.diffusion.pipeline import SamplingConfig, SamplingPipeline
from reconx_pl.diffusion.weights.building import build_network
from reconx_pl.diffusion.weights.generation import ClipDefaults, GenerationDefaults, read_generation
from reconx_pl.diffusion.weights.load import load_network
from reconx_pl.diffusion.weights.model_file import described_generation, described_network, is_model_file
from reconx_pl.diffusion.weights.pretrained import CONFIG, hub_folder, is_hub_name
from reconx_pl.diffusion.weights.releases import RELEASES, release_config, release_defaults
from reconx_pl.errors import ConfigurationError, MissingWeightsError
from reconx_pl.files.checksums import file_sha256
from reconx_pl.files.weights import FOLDER_FILE, SHIPPED, shipped
from reconx_pl.pretrained.inventory import inventory
from reconx_pl.reconstruction.view_generator import ViewGeneratorSource
from reconx_pl.renamed import renamed
from reconx_pl.training.checkpointing.network_weights import own_weights, whole_tensors
from reconx_pl.training.runs import RUN_CONFIG, load_run, weights_of

WEIGHTS = Path("weights")  # where ``reconx weights fetch`` and ``convert`` put files


@dataclass(frozen=True)
class NamedModel:
    """A model that was found.

    Attributes:
        name: as it was given.
        kind: what it is.
        weights: its file or folder of weights.
        config: the file that describes its network; None for a release, and for a file that says so itself.
        run: the folder of its training run, if it has one.
    """

    name: str
    kind: Literal["run", "checkpoint", "folder", "file", "release"]
    weights: Path
    config: Path | None
    run: Path | None = None

    @property
    def defaults(self) -> GenerationDefaults:
        """How it generates unless told otherwise: as its run, its release or ``generation.json`` beside it says.

        Raises:
            BadWeightsError: a ``generation.json`` that cannot be read.
        """
        if self.kind == "release":
            return release_defaults(self.name)
        if self.kind == "file":
            return described_generation(self.weights)
        if self.run is None:
            return read_generation(self.weights.parent)
        stated = renamed(yaml.safe_load((self.run / RUN_CONFIG).read_text(encoding="utf-8")))["model"].get("sampling")
        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(SamplingConfig, "sampling")
        sampling = parser.instantiate_classes(parser.parse_object({"sampling": stated or {}})).sampling
        return replace(read_generation(self.run), sampling=sampling)

    @property
    def follows_cameras(self) -> bool:
        """Whether it is guided by renders, and so generates what the cameras of a clip see. Nothing is loaded."""
        if self.kind == "release":
            return RELEASES[self.name].render is not None
        if self.config is None:
            described: Mapping[str, Any] = described_network(self.weights)
        else:
            described = renamed(yaml.safe_load(self.config.read_text(encoding="utf-8")))  # JSON is YAML
        network = described["model"]["network"] if "model" in described else described
        stated = network.get("init_args", network)
        return stated.get("render") is not None or stated.get("guidance") in ("render", "both")

    @property
    def sampling(self) -> SamplingConfig:
        """Its own sampling settings: those of the run or the release, else the base model's."""
        return self.defaults.sampling

    @property
    def clip(self) -> ClipDefaults:
        """Frames, size and frame rate of its clips, as far as they are known."""
        return self.defaults.clip

    def settings(self, given: SamplingConfig | None) -> SamplingConfig:
        """Sampling settings in the place of its own.

        What ``given`` leaves open (eta, spacing, last step) is as a release does it, where the sampler is the same.
        """
        own = self.sampling
        if given is None:
            return own
        if self.run is not None or given.sampler != own.sampler:
            return given
        left = {name: getattr(own, name) for name in ("eta", "spacing", "last_step") if getattr(given, name) is None}
        return replace(given, **left)

    def identity(self, sampling: SamplingConfig) -> str:
        """What its frames follow from: the hash of its files, and the sampling. Nothing is loaded."""
        described = [] if self.config is None else [self.config]
        folder = self.weights.is_dir()
        parts = sorted(path for path in self.weights.rglob("*") if path.is_file()) if folder else [self.weights]
        digests = " ".join(file_sha256(path) for path in [*described, *parts])
        named = f"{self.name}, " if self.name in SHIPPED else ""
        return f"{named}weights {hashlib.sha256(digests.encode()).hexdigest()[:16]}, {sampling}"

    def load(self, sampling: SamplingConfig | None = None, device: str = "cpu") -> SamplingPipeline:
        """The model, ready to generate.

        Args:
            sampling: None takes its own.
            device: where it generates.

        Raises:
            BadWeightsError: weights that do not fit.
        """
        settings = self.settings(sampling)
        place = "cpu" if settings.offload else device
        if self.run is not None:
            module = load_run(self.run, self.weights)
            if not settings.offload:
                module.to(device)
            return module.view_generator(settings, device)
        if self.kind == "release":
            network = build_network(release_config(self.name), f"release {self.name}")
            load_network(network, self.weights, with_frozen_encoders=True, assign=True)
            return SamplingPipeline(network.to(place).eval(), settings, device)
        whole = self.weights if self.kind == "file" else self.weights.parent
        return SamplingPipeline(ReconXDiffusion.from_pretrained(whole, device=place), settings, device)


def find_model(name: str | Path, weights: Path = WEIGHTS) -> NamedModel:
    """The model of a name; one on the hub is fetched first.

    Args:
        name: folder of a training run, a checkpoint or a file of weights in it, a folder that ``reconx weights
            convert`` or ``save_pretrained`` wrote, a file of ``reconx weights export``, a model that comes with the
            package (``reconx-mini``) or a release (``reconx weights list``), or ``owner/name`` on the hub.
        weights: folder of fetched and converted releases.

    Raises:
        MissingWeightsError: there is none of that name, or a run without weights; says what would do.
        ConfigurationError: weights of another kind, which do not generate.
    """
    path = shipped(name)
    if (path / RUN_CONFIG).is_file():
        return NamedModel(str(name), "run", weights_of(path), path / RUN_CONFIG, path)
    if (path / CONFIG).is_file() and (path / FOLDER_FILE).is_file():
        return NamedModel(str(name), "folder", path / FOLDER_FILE, path / CONFIG)
    if is_model_file(path):
        return NamedModel(str(name), "file", path, None)
    if path.exists():
        for folder in path.absolute().parents:
            if (folder / RUN_CONFIG).is_file():
                return NamedModel(str(name), "checkpoint", path, folder / RUN_CONFIG, folder)
        raise MissingWeightsError(
            f"{path} is neither the folder of a training run ({RUN_CONFIG}), nor a checkpoint in one, nor a folder of "
            f"converted weights ({FOLDER_FILE} and {CONFIG}); `reconx weights list` shows what there is"
        )
    if str(name) in RELEASES:
        return _release(str(name), weights)
    fetched = [known for known in inventory(weights) if known.fetched_as]
    if other := [known for known in fetched if str(name) in (known.name, known.fetched_as)]:
        raise ConfigurationError(
            f"{name} generates no frames: its weights are for {other[0].purpose}. --model takes a release such as "
            f"{', '.join(RELEASES)}, the folder of a training run, a checkpoint in it, a converted folder, or "
            "owner/name on the hub"
        )
    if is_hub_name(name):
        folder = hub_folder(str(name))
        if (folder / RUN_CONFIG).is_file() or (folder / CONFIG).is_file():
            return find_model(folder)
    raise MissingWeightsError(
        f"there is no model {str(name)!r}: name a model that comes with the package ({', '.join(SHIPPED)}), the folder "
        "of a training run (`reconx train fit -c configs/stage2.yaml` makes one), a checkpoint in it, a converted "
        f"folder, a release ({', '.join(RELEASES)}), or owner/name on the hub"
    )


def model_source(name: str | Path, sampling: SamplingConfig | None = None, device: str = "cpu") -> ViewGeneratorSource:
    """A model that is loaded when something has to be generated, with what identifies its frames now.

    Raises:
        MissingWeightsError: see ``find_model``.
    """
    found = find_model(name)
    settings = found.settings(sampling)
    follows = found.follows_cameras and settings.render
    return ViewGeneratorSource(found.identity(settings), lambda: found.load(settings, device), found.clip, follows)


def live_identity(view_generator: SamplingPipeline) -> str:
    """As ``NamedModel.identity``, of a network that is being trained and has no file: the hash of its tensors.

    Where the weights are sharded every rank has to ask.
    """
    digest = hashlib.sha256()
    for name, tensor in whole_tensors(dict(sorted(own_weights(view_generator.network).items()))):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return f"weights {digest.hexdigest()[:16]}, {view_generator.config}"


def release_place(name: str, weights: Path = WEIGHTS) -> Path | None:
    """Where the weights of a release are: the converted ones, which load faster, or else the checkpoint; None: nowhere.

    Args:
        name: of the release.
        weights: folder of fetched and converted releases.
    """
    places = (weights / name / FOLDER_FILE, weights / RELEASES[name].saved_as)
    return next((place for place in places if place.is_file()), None)


def _release(name: str, weights: Path) -> NamedModel:
    place = release_place(name, weights)
    if place is None:
        raise MissingWeightsError(
            f"{name} is a release, and neither {weights / RELEASES[name].saved_as} nor {weights / name} is here: "
            f"`reconx weights fetch {name}`"
        )
    if place.name == FOLDER_FILE:
        return NamedModel(name, "folder", place, place.parent / CONFIG)
    return NamedModel(name, "release", place, None)
