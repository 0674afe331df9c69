"""Group ``data``: what is trained on. The order of samples depends on ``train.seed`` and the epoch only."""

from dataclasses import dataclass, field

from ckptrun.config.custom import Custom
from ckptrun.config.ranges import at_least

__all__ = [
    "CustomDataConfig",
    "DataConfig",
    "PythonSourceConfig",
    "RandomConfig",
    "ShapesConfig",
    "TextConfig",
]


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """What every dataset has."""

    num_workers: int = 0
    """Loader processes per rank; 0 loads in the rank itself. Does not change the order of samples."""
    shuffle: bool = True
    """Draw a new order for each epoch; false: the order of the dataset."""

    def __post_init__(self) -> None:
        at_least("data.num_workers", self.num_workers, 0)


@dataclass(kw_only=True, slots=True)
class PythonSourceConfig(DataConfig):
    """The source code of Python's own standard library, read as bytes: real text, on every machine."""

    max_bytes: int = 2_000_000
    """Read at most this many bytes, in the order of the file names."""

    def __post_init__(self) -> None:
        DataConfig.__post_init__(self)
        at_least("data.max_bytes", self.max_bytes, 1)


@dataclass(kw_only=True, slots=True)
class TextConfig(DataConfig):
    """The user's own files, read as bytes."""

    files: list[str] = field(default_factory=list)
    """Paths or globs (``**`` for all folders below), e.g. ``'data.files=[~/books/**/*.txt]'``."""
    max_bytes: int | None = None
    """Read at most this many bytes; unset: all."""

    def __post_init__(self) -> None:
        DataConfig.__post_init__(self)
        at_least("data.max_bytes", self.max_bytes, 1)


@dataclass(kw_only=True, slots=True)
class RandomConfig(DataConfig):
    """Uniform tensors, input and target, drawn from the sample's index."""

    samples: int = 512
    """Samples per epoch."""

    def __post_init__(self) -> None:
        DataConfig.__post_init__(self)
        at_least("data.samples", self.samples, 1)


@dataclass(kw_only=True, slots=True)
class ShapesConfig(DataConfig):
    """Images of four noisy shapes, drawn from the sample's index; the class is the shape."""

    samples: int = 512
    """Samples per epoch."""
    size: int = 16
    """Height and width, in pixels."""

    def __post_init__(self) -> None:
        DataConfig.__post_init__(self)
        at_least("data.samples", self.samples, 1)
        at_least("data.size", self.size, 8)


@dataclass(kw_only=True, slots=True)
class CustomDataConfig(DataConfig, Custom):
    """A ``torch.utils.data`` dataset of the user's own: map-style, or iterable with ``state_dict``/``load_state_dict``.

    A sample is ``(input, target)``. An iterable dataset splits itself over ranks: it is called with the keyword
    arguments ``rank`` and ``world_size`` (data-parallel) if it takes them.
    """
