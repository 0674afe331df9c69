"""Text as bytes: files cut into sequences, each with its next-byte targets. Must not know tokenizers or ranks."""

import sysconfig
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
import xxhash
from torch import Tensor
from torch.utils.data import Dataset

from ckptrun.config.data_files import data_files
from ckptrun.errors import ConfigError

__all__ = ["PythonSource", "Text"]


class _Bytes(Dataset[tuple[Tensor, Tensor]]):
    """Consecutive, non-overlapping sequences of ``context`` bytes; what is left at the end is not used.

    Shapes:
        sample: input (context,) int64 and target (context,) int64, the target one byte later.

    Attributes:
        deterministic_samples: No sample draws from a global generator.
        fingerprint: Of all bytes that are used; a stream refuses to go on when it changed.
    """

    deterministic_samples = True

    def __init__(self, content: bytes, *, context: int, source: str) -> None:
        if len(content) <= context:
            raise ConfigError(
                f"{source}: {len(content)} bytes are too few for one sequence of model.context={context} and its "
                "target. Give more text, or a shorter context."
            )
        # bytearray: a tensor over read-only memory is undefined behaviour in torch, and it says so each time.
        self._tokens = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        self._context = context
        self.fingerprint = f"{xxhash.xxh3_128_hexdigest(content)}/{context}"

    def __len__(self) -> int:
        return (len(self._tokens) - 1) // self._context

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        begin = index * self._context
        window = self._tokens[begin : begin + self._context + 1].to(torch.int64)
        return window[:-1], window[1:]


class PythonSource(_Bytes):
    """The source code of Python's own standard library: real text, on every machine.

    Raises:
        ConfigError: This Python has no source files, or they are shorter than one sequence.
    """

    def __init__(self, *, context: int, max_bytes: int) -> None:
        folder = Path(sysconfig.get_path("stdlib"))
        files = sorted(folder.glob("*.py"), key=lambda file: file.name)
        if not files:
            raise ConfigError(f"data=python_source found no *.py in {folder}; use data=text with files of your own.")
        super().__init__(_read(files, max_bytes, key="data"), context=context, source=f"data=python_source in {folder}")


class Text(_Bytes):
    """The user's own files, in the order of the patterns and, within one, of the paths; each file once.

    Args:
        patterns: Paths or globs; ``~`` and ``**`` are understood, relative ones start in the working folder.
        context: Length of a sequence, in bytes.
        max_bytes: Read at most so many; None: all.

    Raises:
        ConfigError: A pattern matches no file, a file cannot be read, or there is too little text; names the pattern.
    """

    def __init__(self, patterns: Sequence[str], *, context: int, max_bytes: int | None = None) -> None:
        files = data_files(patterns)
        content = _read(files, max_bytes, key="data.files")
        super().__init__(content, context=context, source=f"data.files={list(patterns)}")


def _read(files: Iterable[Path], max_bytes: int | None, *, key: str) -> bytes:
    parts: list[bytes] = []
    left = max_bytes
    for file in files:
        try:
            with file.open("rb") as stream:
                parts.append(stream.read(-1 if left is None else left))
        except OSError as error:
            raise ConfigError(f"{key}: cannot read {file}: {error.strerror or error}.") from error
        if left is not None:
            left -= len(parts[-1])
            if left <= 0:
                break
    return b"".join(parts)
