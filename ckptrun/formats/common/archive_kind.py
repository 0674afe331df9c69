"""What a zip archive is, told from the names in it: torch.save writes one, and so do many others. Reads nothing."""

import zipfile
from collections.abc import Sequence

__all__ = ["archive_kind", "first_name"]

_PICKLE = "data.pkl"
_LOCAL_HEADER_BYTES = 30
_SHOWN = 3


def archive_kind(entries: Sequence[zipfile.ZipInfo]) -> tuple[str, str] | None:
    """Return what an archive is and what to do with it; None for one of torch.save."""
    names = [entry.filename for entry in entries]
    if entries and min(entry.header_offset for entry in entries) > 0:
        return (
            "a file with bytes before a zip archive, as DCP writes one archive after the other",
            "If it is a file of a checkpoint of DCP, name its folder, which has a .metadata",
        )
    found = _of_torch(names) or _of_others(names)
    if found is not None:
        return found
    if any(_is_at_top(name) for name in names):
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            return (
                "an archive with the content of a torch.save file, but compressed, which torch cannot read either",
                "Unpack it, and pack it again without compression: zip -0 -r",
            )
        return None
    if not names:
        return "a zip archive with nothing in it", "Copy it again"
    shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    return f"a zip archive that torch.save has not written; it holds {shown}", "Unpack it, and name what was in it"


def _is_at_top(name: str) -> bool:
    """Whether it is ``data.pkl``, in the one folder that torch puts everything in, or in none."""
    return name.rpartition("/")[2] == _PICKLE and name.count("/") <= 1


def _of_torch(names: Sequence[str]) -> tuple[str, str] | None:
    """Programs of torch, which hold tensors too."""
    inner = {name.partition("/")[2] for name in names}
    if any(name.startswith("code/") for name in inner) or "constants.pkl" in inner:
        return (
            "a program of TorchScript (torch.jit.save), not a state",
            "Save its state where you trust it: torch.save(torch.jit.load(FILE).state_dict(), OTHER)",
        )
    if inner & {"archive_format", "serialized_exported_program.json", "models/model.json"} or (
        {"serialized_exported_program.json", "archive_format"} & set(names)
    ):
        return (
            "a program of torch.export (.pt2), not a state",
            "Save its state where you trust it: torch.save(torch.export.load(FILE).state_dict, OTHER)",
        )
    if inner & {".data/extern_modules", ".data/python_version"}:
        return (
            "a package of torch.package, which holds code",
            "Load it where you trust it, and save the state_dict() of its model with torch.save",
        )
    return None


def _of_others(names: Sequence[str]) -> tuple[str, str] | None:
    if names and all(name.endswith(".npy") for name in names):
        return (
            "arrays of NumPy (.npz)",
            "Save them as tensors: "
            "torch.save({name: torch.from_numpy(array) for name, array in numpy.load(FILE).items()}, OTHER)",
        )
    if "model.weights.h5" in names:
        return "a model of Keras (.keras)", "Load it with Keras, and save its tensors with torch.save or safetensors"
    if "[Content_Types].xml" in names:
        return "an office document", "Name the checkpoint itself"
    if "META-INF/MANIFEST.MF" in names:
        return "a Java archive", "Name the checkpoint itself"
    return None


def first_name(head: bytes) -> str:
    """Return the name of the first file, for an archive that has lost its directory."""
    length = int.from_bytes(head[26:28], "little")
    return head[_LOCAL_HEADER_BYTES : _LOCAL_HEADER_BYTES + length].decode(errors="replace")
