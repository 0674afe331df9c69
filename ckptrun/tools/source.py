"""Opens a checkpoint of any format that the tools read. The format is told from the files, never from a name alone."""

import errno
import struct

from ckptrun.checkpoint.backend import Location, Url, locate, read_file
from ckptrun.checkpoint.commit import list_committed
from ckptrun.checkpoint.layout import MANIFEST, step_name
from ckptrun.errors import CheckpointNotFoundError, ConfigError
from ckptrun.tools.sources.interface import Origin, Source, SourceLeaf
from ckptrun.tools.text import joined

__all__ = ["Origin", "Source", "SourceLeaf", "format_of", "open_source"]

_DCP_METADATA = ".metadata"
_SAFETENSORS = ".safetensors"
_CHECKPOINTS = "checkpoints"
_TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".tar")
_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"
_SHOWN = 8
# EINVAL: it is a pipe or a device.
_NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL)


def open_source(path_or_url: Url) -> Source:
    """Open a checkpoint folder (ckptrun, DCP, safetensors) or file (safetensors, ``torch.save``).

    Raises:
        CheckpointNotFoundError: There is no checkpoint of any of these formats; says what is there.
        CheckpointDamagedError: There is one, and it cannot be trusted.
        ConfigError: It is a URL that nothing here can open.
    """
    place = _locate(path_or_url)
    # Imported here: each is needed for its own format only.
    match format_of(place):
        case "ckptrun":
            from ckptrun.tools.sources.ckptrun_format import CkptrunSource

            return CkptrunSource(place)
        case "dcp":
            from ckptrun.tools.sources.dcp_format import DcpSource

            return DcpSource(place)
        case "safetensors":
            from ckptrun.tools.sources.safetensors_format import SafetensorsSource

            return SafetensorsSource(place)
        case _:
            from ckptrun.tools.sources.torch_format import TorchSource

            return TorchSource(place)


def _locate(path_or_url: Url) -> Location:
    try:
        return locate(path_or_url)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"{path_or_url} cannot be opened: {error}.") from error


def format_of(place: Location) -> str:
    """Return the format of what lies at ``place``, ``ckptrun``, ``dcp``, ``torch`` or ``safetensors``.

    Raises:
        CheckpointNotFoundError: It is none of them; says what is there.
    """
    names = place.backend.list_names(place.path)
    if MANIFEST in names:
        return "ckptrun"
    if _DCP_METADATA in names:
        return "dcp"
    if any(name.endswith(_SAFETENSORS) for name in names):
        return "safetensors"
    found = None if names else _format_of_file(place)
    if found is None:
        raise CheckpointNotFoundError(
            f"{place} is no checkpoint: no folder of ckptrun (manifest.json), of DCP (.metadata) or of .safetensors "
            f"files, and no file of safetensors or torch.save; {_what_is_there(place, names)}.",
            folder=str(place),
        )
    return found


def _format_of_file(place: Location) -> str | None:
    try:
        length = place.backend.size(place.path)
        head = read_file(place, 9)
    except OSError as error:
        if error.errno not in _NO_FILE and not isinstance(error, FileNotFoundError):
            raise
        return None
    if place.name.endswith(_SAFETENSORS) or _looks_like_safetensors(head, length):
        return "safetensors"
    if head.startswith((_ZIP, _PICKLE)) or place.name.endswith(_TORCH_SUFFIXES):
        return "torch"
    return None


def _looks_like_safetensors(head: bytes, length: int) -> bool:
    return len(head) == 9 and head[8:] == b"{" and struct.unpack("<Q", head[:8])[0] <= length - 8


def _what_is_there(place: Location, names: list[str]) -> str:
    for root in (place, place.child(_CHECKPOINTS)):
        steps = list_committed(root)
        if steps:
            return f"it holds checkpoints; name one, the newest is {root.child(step_name(steps[-1]))}"
    if any(name.endswith(".metadata") for name in names):
        return "its ranks saved with use_collectives=False, each with metadata of its own, which is not supported"
    if names:
        return f"there are: {joined(names, _SHOWN)}"
    return "it does not exist, is empty, or is another kind of file"
