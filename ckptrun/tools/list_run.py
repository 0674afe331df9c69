"""The checkpoints of a run, what saves that did not end have left, and saves in flight. Must not import torch."""

from dataclasses import dataclass
from typing import Any

from ckptrun.engine.backends.interface import Location
from ckptrun.engine.commit import list_in_flight, list_leftovers
from ckptrun.engine.consistency import contradictions
from ckptrun.engine.layout import LeftoverKind, parse_leftover, parse_step
from ckptrun.engine.manifest import Manifest, read_manifest
from ckptrun.errors import CheckpointNotFoundError, ManifestError
from ckptrun.text import bytes_text
from ckptrun.tools.describe import mesh_text, when_text
from ckptrun.tools.output import Column, Output
from ckptrun.tools.places import checkpoints_in

__all__ = ["Listing", "list_run"]

_COLUMNS = [
    Column("checkpoint", style="bold"),
    Column("step", right=True),
    Column("saved"),
    Column("ranks", right=True),
    Column("mesh"),
    Column("leaves", right=True),
    Column("files", right=True),
    Column("bytes", right=True),
]

_KINDS = {
    LeftoverKind.tmp: "a save that did not end",
    LeftoverKind.old: "replaced by an overwrite that did not end; comes back if nothing took its place",
    LeftoverKind.gone: "removed, not yet deleted",
    LeftoverKind.lock: "the lock of a save that did not end",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Checkpoint:
    name: str
    manifest: Manifest | None
    damage: str | None
    """Why the manifest cannot be trusted, or what it contradicts."""

    def to_json(self) -> dict[str, Any]:
        head = {"name": self.name, "step": parse_step(self.name), "damage": self.damage}
        manifest = self.manifest
        if manifest is None:
            return head | dict.fromkeys(("created", "world_size", "save_id", "leaves", "files", "bytes"))
        return head | {
            "created": manifest.created,
            "world_size": manifest.world_size,
            "save_id": manifest.save_id,
            "leaves": len(manifest.leaves),
            "files": len(manifest.files),
            "bytes": _bytes(manifest),
        }

    def to_row(self) -> list[str]:
        manifest, step = self.manifest, str(parse_step(self.name))
        if manifest is None:
            return [self.name, step, "DAMAGED manifest", "", "", "", "", ""]
        return [
            self.name,
            step,
            when_text(manifest),
            str(manifest.world_size),
            mesh_text(manifest) or "",
            str(len(manifest.leaves)),
            str(len(manifest.files)),
            bytes_text(_bytes(manifest)),
        ]


def _bytes(manifest: Manifest) -> int:
    return sum(file.bytes for file in manifest.files.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What lies in a folder of checkpoints."""

    root: Location
    checkpoints: tuple[_Checkpoint, ...]
    """Oldest first."""
    leftovers: tuple[str, ...]
    in_flight: dict[str, str]
    """Name -> who is writing it."""

    @property
    def is_damaged(self) -> bool:
        """Whether a manifest cannot be trusted."""
        return any(checkpoint.damage for checkpoint in self.checkpoints)

    def to_json(self) -> dict[str, Any]:
        """Return it for ``--json``."""
        return {
            "path": str(self.root),
            "checkpoints": [checkpoint.to_json() for checkpoint in self.checkpoints],
            "leftovers": list(self.leftovers),
            "in_flight": dict(self.in_flight),
        }

    def show(self, output: Output) -> None:
        """Print it for a person."""
        output.line(str(self.root), "bold")
        if self.checkpoints:
            output.table(_COLUMNS, [checkpoint.to_row() for checkpoint in self.checkpoints])
        else:
            output.line("  no committed checkpoint")
        for checkpoint in self.checkpoints:
            if checkpoint.damage is not None:
                output.line(f"  DAMAGED: {checkpoint.damage}", "red")
        if self.leftovers:
            output.line("Leftovers, removed by the next run that saves here:")
            output.table([Column("", style="yellow"), Column("")], [[name, _kind(name)] for name in self.leftovers])
        if self.in_flight:
            output.line("Saves in flight:")
            output.table([Column("", style="yellow"), Column("")], list(self.in_flight.items()))


def _kind(name: str) -> str:
    leftover = parse_leftover(name)
    return "a file that no checkpoint names" if leftover is None else _KINDS[leftover.kind]


def list_run(root: Location) -> Listing:
    """Return what lies in the folder of checkpoints ``root``."""
    return Listing(
        root=root,
        checkpoints=tuple(found for folder in checkpoints_in(root) if (found := _read(folder)) is not None),
        leftovers=tuple(list_leftovers(root)),
        in_flight=list_in_flight(root),
    )


def _read(folder: Location) -> _Checkpoint | None:
    """None for one that was removed since it was listed."""
    try:
        manifest = read_manifest(folder)
        wrong = "; ".join(map(str, contradictions(manifest, folder.name)))
        damage = f"{folder} contradicts itself: {wrong}" if wrong else None
        return _Checkpoint(name=folder.name, manifest=manifest, damage=damage)
    except CheckpointNotFoundError:
        return None
    except ManifestError as error:
        return _Checkpoint(name=folder.name, manifest=None, damage=str(error))
