"""Reads every byte of a checkpoint and checks it, and goes on after damage until all of it is known.

::

    files, by name -> pieces of up to 4 MiB, by place -> [read, hash]  [read, hash]  as many threads as the storage
                                                                                     serves at once

The pieces are handed out in order, so each file is read from its begin to its end, and the kernel is told what comes
next: while one thread hashes, the device works for the other. Memory is one piece for each thread. Must not import
torch, nor print.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from ckptrun.engine.backends.interface import Location
from ckptrun.engine.consistency import contradictions
from ckptrun.engine.layout import MANIFEST
from ckptrun.engine.manifest import Chunk, Leaf, Manifest, read_manifest
from ckptrun.errors import CheckpointNotFoundError, ManifestError
from ckptrun.text import joined
from ckptrun.tools.check_file import PIECE_BYTES, FileCheck, length_of
from ckptrun.tools.damage import Damage, DamageKind, merged

__all__ = ["Findings", "check_checkpoint"]


@dataclass(slots=True, kw_only=True)
class Findings:
    """What came out of checking one checkpoint."""

    path: str
    manifest: Manifest | None = None
    """None where it cannot be trusted."""
    bytes: int = 0
    """How many were read of shard files."""
    damage: list[Damage] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    """What could not be checked, for reasons that say nothing about the bytes: no permission, no network."""
    notes: list[str] = field(default_factory=list)
    """What is worth knowing, and no damage."""

    @property
    def status(self) -> str:
        """``whole``, ``damaged`` or ``not_checked``: some of it could not be read."""
        if self.damage:
            return "damaged"
        return "not_checked" if self.unread else "whole"


def check_checkpoint(
    folder: Location, *, started: Callable[[int], Callable[[int], None]] = lambda _: lambda _: None
) -> Findings:
    """Check the checkpoint in ``folder``.

    Args:
        folder: Of the checkpoint.
        started: Called with the bytes that will be read; what it returns is told, in any thread, how many more are.

    Raises:
        CheckpointNotFoundError: There is no checkpoint; or it was removed or replaced in the meantime, as a run does.
        OSError: The manifest cannot be read.
    """
    findings = Findings(path=str(folder))
    try:
        manifest = read_manifest(folder)
    except ManifestError as error:
        what = str(error).removeprefix(str(folder.child(MANIFEST))).lstrip(": ")
        findings.damage.append(Damage(kind=DamageKind.manifest, file=MANIFEST, expected="a manifest", found=what))
        return findings
    findings.manifest = manifest
    findings.damage += [
        Damage(kind=DamageKind.contradiction, file=MANIFEST, leaf=wrong.leaf, expected=wrong.other, found=wrong.what)
        for wrong in contradictions(manifest, folder.name)
    ]
    _note(findings, folder, manifest)
    checks = _checks_of(folder, manifest, started(sum(file.bytes for file in manifest.files.values())))
    _run(checks)
    for check in checks:
        findings.damage.extend(check.damage)
        findings.unread.extend(check.unread)
        findings.bytes += check.bytes
    findings.damage = merged(findings.damage)
    if findings.status != "whole":
        _require_same(folder, manifest)
    return findings


def _require_same(folder: Location, manifest: Manifest) -> None:
    """Whoever removes or replaces a checkpoint has not damaged it."""
    try:
        save_id = read_manifest(folder).save_id
    except ManifestError:
        return
    if save_id != manifest.save_id:
        raise CheckpointNotFoundError(
            f"{folder} was replaced by save {save_id} while it was checked; check it again.", folder=str(folder)
        )


def _note(findings: Findings, folder: Location, manifest: Manifest) -> None:
    names = folder.backend.list_names(folder.path)
    unnamed = [name for name in names if name != MANIFEST and name not in manifest.files]
    if unnamed:
        findings.notes.append(f"Not named by the manifest, so read by nobody: {joined(unnamed)}.")
    parts = [leaf.name for leaf in manifest.leaves.values() if not leaf.is_whole]
    if parts:
        findings.notes.append(f"Saved by some of its ranks only, so not whole: {joined(parts)}.")


def _checks_of(folder: Location, manifest: Manifest, advance: Callable[[int], None]) -> list[FileCheck]:
    chunks: dict[str, list[tuple[Leaf, Chunk]]] = {name: [] for name in sorted(manifest.files)}
    for leaf in manifest.leaves.values():
        for chunk in leaf.chunks:
            chunks[chunk.file].append((leaf, chunk))
    return [
        FileCheck(folder.child(name), manifest.files[name], found, save_id=manifest.save_id, advance=advance)
        for name, found in chunks.items()
    ]


def _run(checks: Sequence[FileCheck]) -> None:
    """Work through all pieces of all files, in order."""
    tasks = ((check, piece) for check in checks for piece in check.pieces())
    handing_out = threading.Lock()
    stopping = threading.Event()

    def work() -> None:
        buffer = memoryview(bytearray(PIECE_BYTES))
        while not stopping.is_set():
            with handing_out:
                task = next(tasks, None)
            if task is None:
                return
            check, piece = task
            if length_of(piece) > buffer.nbytes:
                # A block of a writer that makes them longer; reading the manifest has bounded it.
                buffer = memoryview(bytearray(length_of(piece)))
            check.work(piece, buffer)

    threads = next((reader.reads_at_once for check in checks if (reader := check.reader()) is not None), 1)
    with ThreadPoolExecutor(threads, thread_name_prefix="verify") as executor:
        try:
            for future in [executor.submit(work) for _ in range(threads)]:
                future.result()
        except BaseException:
            stopping.set()
            raise
