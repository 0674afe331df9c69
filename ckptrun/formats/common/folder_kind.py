"""What a folder is that is no checkpoint which the tools read, told from the names in it."""

import re
from collections.abc import Callable, Sequence

__all__ = ["folder_kind"]

_EXPORT = "load it with the program that wrote it, and save its tensors with torch.save or safetensors"


def _has(*wanted: str) -> Callable[[Sequence[str]], bool]:
    return lambda names: any(name in names for name in wanted)


def _matches(pattern: str) -> Callable[[Sequence[str]], bool]:
    return lambda names: any(re.fullmatch(pattern, name) for name in names)


_KINDS: Sequence[tuple[Callable[[Sequence[str]], bool], str, str]] = (
    (
        _has("_CHECKPOINT_METADATA", "manifest.ocdbt", "_METADATA", "ocdbt.process_0", "commit_success.txt"),
        "a checkpoint of Orbax (JAX)",
        _EXPORT,
    ),
    (_has(".zgroup", ".zarray", ".zmetadata", "zarr.json"), "arrays of Zarr", _EXPORT),
    (_has("saved_model.pb", "keras_metadata.pb"), "a SavedModel of TensorFlow", _EXPORT),
    (_matches(r".*\.data-\d+-of-\d+"), "a checkpoint of TensorFlow", _EXPORT),
    (
        _matches(r"(zero_pp_rank_\d+_)?mp_rank_\d+.*_states\.pt|.*zero_pp_rank_\d+_mp_rank_\d+.*\.pt"),
        "a checkpoint of DeepSpeed, cut over ranks",
        "put it together with its zero_to_fp32.py, and name the file that this makes",
    ),
    (
        _has("zero_to_fp32.py"),
        "the folder of a run of DeepSpeed",
        "put a checkpoint together with its zero_to_fp32.py, and name the file that this makes",
    ),
    (
        _matches(r"mp_rank_\d+(_\d+)*|latest_checkpointed_iteration\.txt"),
        "a checkpoint of Megatron, cut over ranks",
        "put it together with Megatron's own tools, and name what they make",
    ),
)


def folder_kind(names: Sequence[str]) -> tuple[str, str] | None:
    """Return what a folder is and what to do with it; None where nothing tells."""
    return next(((what, way_out) for is_it, what, way_out in _KINDS if is_it(names)), None)
