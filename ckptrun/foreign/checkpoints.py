"""Which checkpoints the starts of a job have left, from the saves of its ranks. Torch-free."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from ckptrun.foreign.alignment import digests_at, moments_at
from ckptrun.foreign.records import Heard, HeardRank, Save

__all__ = ["SavedStep", "committed_name", "newest_of", "saved_steps", "sizes_in_order", "step_of"]

_LONGEST_DELAY = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedStep:
    """What all ranks saved after one step."""

    step: int
    place: Path
    """The file, or the folder that all the files of it lie in."""
    is_complete: bool
    """Whether every file of it was written, and every rank has gone on after that."""
    sizes: dict[Path, int]
    """Of its files, where they are known, in bytes."""
    files: tuple[Path, ...] = ()
    """As they are called in the end."""
    copies: tuple[Path, ...] = ()
    """Those of them each of which holds all of it, where there are several."""

    @property
    def name(self) -> str:
        """What it is called in the events: files that are written again and again hold another step each time."""
        return f"{self.place} (step {self.step})"


def saved_steps(start: Heard, *, first_step: int, output: Path, pattern: str | None = None) -> list[SavedStep]:
    """What one start saved and could be resumed from, by step.

    Args:
        start: What its ranks did.
        first_step: What it went on from.
        output: The folder that the job was told to write to.
        pattern: Only files that it stands for are checkpoints, see ``job.checkpoints``; None: it is not said which.
    """
    by_step: dict[int, list[tuple[Save, Path]]] = {}
    ranks_at: dict[int, set[int]] = {}
    for rank in start.ranks:
        for save in rank.saves:
            step = first_step + step_of(save, rank)
            by_step.setdefault(step, []).append((save, _in_the_end(save, rank, start.ranks)))
            ranks_at.setdefault(step, set()).add(rank.rank)
    found = []
    for step, named in sorted(by_step.items()):
        if pattern is not None:
            named = [(save, file) for save, file in named if _is_meant(file, output, pattern)]
        saves, files = [save for save, _ in named], [file for _, file in named]
        is_said = pattern is not None and bool(saves)
        # Weights alone (a best model, an export) are nothing to go on from, where there is more.
        is_whole = any(save.is_resumable for save in saves)
        if not (is_said or is_whole or _holds_moments(saves, start.ranks, step - first_step)):
            continue
        found.append(
            SavedStep(
                step=step,
                place=_place(files, output),
                is_complete=all(save.is_done and save.is_followed for save in saves),
                sizes={save.path: save.size for save in saves if save.size is not None},
                files=tuple(files),
                # Of what each rank saves for itself, all may be wanted, though ranks hold the same.
                copies=_copies(saves, files) if len(ranks_at[step]) == 1 else (),
            )
        )
    return found


def _copies(saves: Sequence[Save], files: Sequence[Path]) -> tuple[Path, ...]:
    """Files of the same content, if all are: one under the name of the step, say, and one that is always the last."""
    first = saves[0]
    alike = all(save.is_resumable and save.content == first.content for save in saves)
    return tuple(sorted(set(files))) if alike and first.content and len(set(files)) > 1 else ()


def _is_meant(path: Path, output: Path, pattern: str) -> bool:
    """Whether a pattern stands for a file, or for a folder that it is in."""
    if output not in path.parents:
        return False
    parts = path.relative_to(output).parts
    return any(fnmatch("/".join(parts[:count]), pattern) for count in range(1, len(parts) + 1))


def _holds_moments(saves: Sequence[Save], ranks: Sequence[HeardRank], index: int) -> bool:
    """Whether what looks like weights has moments in it, or the optimizer has none."""
    moments = {
        value for rank in ranks if rank.steps for value in moments_at(rank, min(index, len(rank.steps))).values()
    }
    return bool(saves and index > 0) and (not moments or any(moments & set(one.content.values()) for one in saves))


def sizes_in_order(start: Heard, step: int) -> dict[int, list[int | None]]:
    """Of each rank of a start from the beginning, the sizes of the files that it saved after ``step``, in order."""
    return {rank.rank: [save.size for save in rank.saves if step_of(save, rank) == step] for rank in start.ranks}


def step_of(save: Save, rank: HeardRank) -> int:
    """The step whose state was saved: what is written in the background is of an earlier one than it is written at."""
    content = frozenset(save.content.values())
    if not content:
        return save.step
    best, most = save.step, 0
    for step in range(save.step, max(-1, save.step - _LONGEST_DELAY), -1):
        equal = len(content & digests_at(rank, step))
        if equal > most:
            best, most = step, equal
    return best


def newest_of(saved: Sequence[SavedStep], loads: Sequence[Path], output: Path) -> SavedStep | None:
    """The newest checkpoint that a start could have gone on from.

    Args:
        saved: Complete ones that were there when it began.
        loads: What it has read. Where that is of the form of some of them, others (a best model, an export) are not
            what this job goes on from.
        output: The folder that the job was told to write to.
    """
    forms = {_form(path, output) for path in loads}
    alike = [one for one in saved if forms & {_form(path, output) for path in (one.place, *one.files)}]
    return max(alike or saved, key=lambda one: one.step, default=None)


def _form(path: Path, output: Path) -> str:
    """A path without its numbers."""
    return re.sub(r"\d+", "#", str(path.relative_to(output)) if output in path.parents else str(path))


def _place(paths: Sequence[Path], output: Path) -> Path:
    """The folder of several files; of files that lie in the job's folder itself, the first."""
    if len(set(paths)) == 1:
        return paths[0]
    parents = [path.parent for path in paths]
    common = next(folder for folder in [parents[0], *parents[0].parents] if all(_is_in(p, folder) for p in parents))
    return paths[0] if common == output else common


def _is_in(path: Path, folder: Path) -> bool:
    return path == folder or folder in path.parents


def committed_name(save: Save, rank: HeardRank) -> str:
    """What a file is called once its save is over, whatever becomes of it at the next one."""
    later = zip(rank.renames, rank.renamed_at, strict=True)
    own = [pair for pair, step in list(later)[save.renames_before :] if step == save.step or save.in_background]
    return _renamed(save.path, own).name


def _in_the_end(save: Save, rank: HeardRank, ranks: Sequence[HeardRank]) -> Path:
    """What a file is called when its start has ended, and it or a folder of it was renamed after the save."""
    renames: list[tuple[Path, Path]] = []
    for one in ranks:
        if one is rank:
            renames += one.renames[save.renames_before :]
        else:
            renames += [pair for pair, step in zip(one.renames, one.renamed_at, strict=True) if step >= save.step]
    return _renamed(save.path, renames)


def _renamed(path: Path, renames: Sequence[tuple[Path, Path]]) -> Path:
    for before, after in renames:
        if path == before or before in path.parents:
            path = after / path.relative_to(before)
    return path
