"""What ``ckptrun convert`` can be asked for. Torch-free, so that ``--help`` is quick."""

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["DTYPES", "FORMATS", "Options"]

FORMATS = ("ckptrun", "dcp", "torch", "safetensors")

DTYPES: Mapping[str, str] = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
"""What a user calls a dtype that tensors are converted to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is asked for."""

    to: str
    """One of ``FORMATS``."""
    only: str | None = None
    """The component or prefix; None for all."""
    keeps_prefix: bool = True
    dtype: str | None = None
    """One of ``DTYPES``."""
    max_shard_bytes: int | None = None
    """For safetensors: a folder of files, none of them larger."""
    overwrite: bool = False
    is_checked: bool = True

    @property
    def makes_folder(self) -> bool:
        """Whether a folder is written rather than a file."""
        return self.to in ("ckptrun", "dcp") or self.max_shard_bytes is not None
