"""Exceptions whose message says what is wrong, in which file, and what to do about it."""

from collections.abc import Sequence


class ReconXError(Exception):
    """Base of every error that this package raises on purpose; the command line prints it without a traceback."""


class BadCameraError(ReconXError, ValueError):
    """A camera that cannot be used: NaN, a focal length that is not positive, a matrix that is not rigid."""


class BadDataError(ReconXError, ValueError):
    """A file or a sample that cannot be read as what it claims to be; the message names it."""


class SchemaVersionError(BadDataError):
    """A shard written by a newer version of the schema than this package reads."""


class MissingDependencyError(ReconXError, ImportError):
    """An optional package is not installed; the message has the line that installs it."""


class MissingWeightsError(ReconXError, FileNotFoundError):
    """Pretrained weights were not found; the message says where they were looked for and which command gets them."""


class BadWeightsError(ReconXError, ValueError):
    """A weights file that does not fit the model; the message lists the missing and the unexpected keys."""


class PublishingError(ReconXError, OSError):
    """The hub could not be reached or refused what was to be published; the message says which and what to do."""


class BackendUnavailableError(ReconXError, RuntimeError):
    """A renderer or estimator cannot run on this machine; the message says why and names the remedy."""


class BadSceneError(ReconXError, ValueError):
    """A scene that cannot be reconstructed: no points, no views, nothing that overlaps."""


class UnplacedViewsError(BadSceneError):
    """A reconstruction found no place for some views; ``views`` are their numbers, from 0."""

    def __init__(self, message: str, views: Sequence[int]) -> None:
        super().__init__(message)
        self.views = tuple(views)


class ConfigurationError(ReconXError, ValueError):
    """Options that contradict each other or the data."""


class CheckpointError(ReconXError, OSError):
    """A checkpoint could not be written to its end; the message names it and the space that is left."""


class StorageError(ReconXError, OSError):
    """Results cannot be written: a full disk, no permission; the message names the folder and the remedy."""


class OtherRankError(ReconXError, RuntimeError):
    """Work that all ranks do together failed on another one; the message has that rank's error."""
