"""Opens a checkpoint of any format that the tools read. The format is told from the files, never from a name alone."""

import errno

from ckptrun.engine.backends.interface import Location, Url, read_file
from ckptrun.engine.commit import list_committed
from ckptrun.engine.layout import MANIFEST, step_name
from ckptrun.engine.locate import place_of
from ckptrun.errors import CheckpointNotFoundError, ForeignFileError, InternalError
from ckptrun.formats.common.folder_kind import folder_kind
from ckptrun.formats.common.interface import Origin, Source, SourceLeaf
from ckptrun.formats.common.part_names import TORCH_SUFFIXES, is_index_name
from ckptrun.text import joined

__all__ = ["Origin", "Source", "SourceLeaf", "format_of", "open_source"]

_DCP_METADATA = ".metadata"
_SAFETENSORS = ".safetensors"
_CHECKPOINTS = "checkpoints"
# A file may be called so, too; parts of one checkpoint never are.
_ONE_FILE_SUFFIXES = (*TORCH_SUFFIXES, ".tar")
_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"
_SHOWN = 8
# EINVAL: it is a pipe or a device.
_NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL)


def open_source(path_or_url: Url, *, incomplete: bool = False) -> Source:
    """Open a folder (ckptrun, DCP, safetensors, parts of torch.save), a file (safetensors, torch.save) or an index.

    Args:
        path_or_url: Where it lies.
        incomplete: Whether to go on with what is there where an index or the names of files say that more should be.

    Raises:
        CheckpointNotFoundError: There is no checkpoint of any of these formats; says what is there.
        CheckpointDamagedError: There is one, and it cannot be trusted, or is not whole.
        ConfigError: It is a URL that nothing here can open.
    """
    place = place_of(path_or_url)
    # Imported here: each is needed for its own format only.
    match format_of(place):
        case "ckptrun":
            from ckptrun.formats.ckptrun_format.reader import CkptrunSource

            return CkptrunSource(place)
        case "dcp":
            from ckptrun.formats.common.file_kind import require_fetched
            from ckptrun.formats.dcp.reader import DcpSource

            try:
                return DcpSource(place)
            except ForeignFileError:
                # Perhaps a pointer to a file that was not fetched.
                require_fetched(place.child(_DCP_METADATA))
                raise
        case "safetensors":
            from ckptrun.formats.safetensors_format.reader import SafetensorsSource

            return SafetensorsSource(place, incomplete=incomplete)
        case "torch parts":
            from ckptrun.formats.torch_save.folder import TorchFolderSource

            return TorchFolderSource(place, incomplete=incomplete)
        case "torch":
            from ckptrun.formats.torch_save.reader import TorchSource

            return TorchSource(place)
        case other:
            raise InternalError(f"No reader is known for the format {other}.")


def format_of(place: Location) -> str:
    """Return the format of what lies at ``place``: ``ckptrun``, ``dcp``, ``safetensors``, ``torch``, ``torch parts``.

    Raises:
        CheckpointNotFoundError: It is none of them; says what is there.
    """
    names = place.backend.list_names(place.path)
    found = _format_of_folder(place, names) if names else _format_of_file(place)
    if found is None:
        raise CheckpointNotFoundError(
            f"{place} is no checkpoint: no folder of ckptrun (manifest.json), of DCP (.metadata) or of .safetensors "
            f"files, and no file of safetensors or torch.save; {_what_is_there(place, names)}.",
            folder=str(place),
        )
    return found


def _format_of_folder(place: Location, names: list[str]) -> str | None:
    if MANIFEST in names:
        return "ckptrun"
    if _DCP_METADATA in names:
        return "dcp"
    if any(name.endswith(_SAFETENSORS) or f"{_SAFETENSORS}.index" in name for name in names):
        return "safetensors"
    from ckptrun.formats.torch_save.folder import is_shard_folder

    return "torch parts" if folder_kind(names) is None and is_shard_folder(place, names) else None


def _format_of_file(place: Location) -> str | None:
    try:
        length = place.backend.size(place.path)
        head = read_file(place, 9)
    except OSError as error:
        if error.errno not in _NO_FILE and not isinstance(error, FileNotFoundError):
            raise
        return None
    index = _format_of_index(place)
    if index is not None:
        return index
    from ckptrun.formats.common.file_kind import is_safetensors, require_kind

    require_kind(place)
    if place.name.endswith(_SAFETENSORS) or is_safetensors(head, length):
        return "safetensors"
    if head.startswith((_ZIP, _PICKLE)) or place.name.endswith(_ONE_FILE_SUFFIXES):
        return "torch"
    return None


def _format_of_index(place: Location) -> str | None:
    from ckptrun.formats.common.files import Files
    from ckptrun.formats.common.shard_set import shard_set

    if not is_index_name(place.name):
        return None
    names = place.parent.backend.list_names(place.parent.path)
    with Files(place.parent) as files:
        for format, suffixes in (("safetensors", (_SAFETENSORS,)), ("torch parts", TORCH_SUFFIXES)):
            if shard_set(files, names, suffixes=suffixes, only_index=place.name).indexes:
                return format
    return None


def _what_is_there(place: Location, names: list[str]) -> str:
    for root in (place, place.child(_CHECKPOINTS)):
        steps = list_committed(root)
        if steps:
            return f"it holds checkpoints; name one, the newest is {root.child(step_name(steps[-1]))}"
    if any(name.endswith(".metadata") for name in names):
        return "its ranks saved with use_collectives=False, each with metadata of its own, which is not supported"
    kind = folder_kind(names)
    if kind is not None:
        return f"it is {kind[0]}: {kind[1]}"
    if names:
        states = [name for name in names if name.endswith(_ONE_FILE_SUFFIXES)]
        advice = f"; name a file, such as {place.child(states[0])}" if states else ""
        return f"there are: {joined(names, _SHOWN)}{advice}"
    return "it does not exist, is empty, or is another kind of file"
