"""What a model generates where nothing else is said: ``generation.json`` beside its weights."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from reconx_pl.diffusion.sampling.config import SamplingConfig
from reconx_pl.errors import BadWeightsError, ReconXError

GENERATION = "generation.json"


@dataclass(frozen=True)
class ClipDefaults:
    """A clip as a model was trained to generate it; None where that is not known.

    Args:
        frames: T of it.
        height: rows of a frame, pixels.
        width: columns, pixels.
        fps: frame rate that the model is told.
    """

    frames: int | None = None
    height: int | None = None
    width: int | None = None
    fps: float | None = None


@dataclass(frozen=True)
class GenerationDefaults:
    """How a model generates unless told otherwise.

    Args:
        release: name of the release that it is; None for another model.
        clip: see ``ClipDefaults``.
        sampling: see ``SamplingConfig``.
    """

    release: str | None = None
    clip: ClipDefaults = field(default_factory=ClipDefaults)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def text(self) -> str:
        """The content of ``generation.json``."""
        return json.dumps(asdict(self), indent=2) + "\n"


def read_generation(folder: Path) -> GenerationDefaults:
    """What ``generation.json`` of a folder says; a folder without one says nothing.

    Raises:
        BadWeightsError: the file is not of this form.
    """
    path = folder / GENERATION
    return parse_generation(path.read_text(encoding="utf-8"), path) if path.is_file() else GenerationDefaults()


def parse_generation(text: str, path: Path) -> GenerationDefaults:
    """What the content of a ``generation.json`` says.

    Args:
        text: the content.
        path: of the file, for the message.

    Raises:
        BadWeightsError: the content is not of this form.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(GenerationDefaults, "generation")
    try:
        content = json.loads(text)
        if not isinstance(content, dict):
            raise TypeError(f"it is a {type(content).__name__}")
        return parser.instantiate_classes(parser.parse_object({"generation": content})).generation
    except (ArgumentError, ReconXError, TypeError, ValueError) as error:
        raise BadWeightsError(
            f"{path}: does not say how the model generates ({error}); delete it and name frames, size and sampling "
            "yourself, or convert the checkpoint again"
        ) from error
