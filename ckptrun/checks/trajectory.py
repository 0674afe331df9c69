"""Checks over the ledgers of a run: steps done twice came out the same, and all of them repeat a reference run."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ckptrun.checks.leaf_digests import differing, saved_digests
from ckptrun.errors import CkptrunError
from ckptrun.evidence.difference import Difference
from ckptrun.evidence.ledger import Ledger
from ckptrun.evidence.ledger_comparison import LedgerComparison, earliest
from ckptrun.evidence.lineage import Lineage
from ckptrun.evidence.mismatch import Mismatch
from ckptrun.evidence.run_folder import ledger_file
from ckptrun.evidence.verdict import Check, Status
from ckptrun.files import read_lines
from ckptrun.ranks import Ranks
from ckptrun.text import counted

__all__ = ["check_final_state", "check_repeats", "check_trajectory"]


def check_repeats(ledger: Ledger, *, ranks: Ranks) -> Check | None:
    """Whether steps that were done again, in any start, came out the same. All ranks call. None: no step was."""
    found = ranks.gather((ledger.repeated, ledger.mismatch))
    repeated = min(count for count, _ in found)
    first = earliest(mismatch for _, mismatch in found)
    if first is not None:
        again = "done again after a resume (if the program was changed, give it a run of its own: run.name=...)"
        return _different("repeats", first, again)
    if not repeated:
        return None
    detail = f"{repeated} steps on {counted(ranks.world_size, 'rank')} done again after a resume came out the same"
    return Check(name="repeats", status=Status.equal, detail=detail)


def check_trajectory(reference: Path, run_dir: Path, *, last_step: int, lineage: Lineage, ranks: Ranks) -> Check:
    """Compare this run, all its starts together, step by step with the run in ``reference``. All ranks call.

    Steps that a later start, under another config, has gone back before are none of this run's any more: ``lineage`` is
    that of its state.
    """
    error, own = "", None
    try:
        if not ledger_file(reference, ranks.rank).is_file():
            raise FileNotFoundError("there is none")
        expected = read_lines(ledger_file(reference, ranks.rank))
        got = [line for line in read_lines(ledger_file(run_dir, ranks.rank)) if lineage.holds(line)]
        own = LedgerComparison.of_rank(expected, got, rank=ranks.rank)
    except (OSError, ValueError, KeyError) as problem:
        error = f"rank {ranks.rank} cannot read {ledger_file(reference, ranks.rank)}: {problem}"
    found = ranks.gather((error, own))
    errors = [text for text, _ in found if text]
    if errors:
        return Check(name="trajectory", status=Status.not_verified, detail=errors[0])
    if ranks.decide(lambda: ledger_file(reference, ranks.world_size).exists()):
        detail = f"{reference} ran on more than the {counted(ranks.world_size, 'rank')} of this run"
        return Check(name="trajectory", status=Status.not_verified, detail=detail)
    whole = LedgerComparison.of_ranks([each for _, each in found if each is not None])
    if whole.first is not None:
        return _different("trajectory", whole.first, f"against {reference}")
    if whole.steps < last_step:
        detail = f"only {whole.steps} of {last_step} steps stand in the ledgers of both this run and {reference}"
        return Check(name="trajectory", status=Status.not_verified, detail=detail)
    covered = "loss, gradient norm, learning rate, batches, random streams"
    detail = f"{whole.steps} steps on {counted(ranks.world_size, 'rank')} repeat {reference}: {covered}"
    return Check(name="trajectory", status=Status.equal, detail=detail)


def check_final_state(
    reference: str, own: Mapping[str, str], *, step: int, ranks: Ranks, counts: Callable[[str], bool] = lambda _: True
) -> Check:
    """Compare the digests of this run's last save with those in the manifest of the checkpoint ``reference``.

    All ranks call. ``own`` is leaf name -> digest when the save was requested, of this rank; ``counts`` tells whether a
    leaf is compared.
    """
    own = {name: digest for name, digest in own.items() if counts(name)}
    try:
        everything = ranks.decide(lambda: saved_digests(reference))
    except CkptrunError as error:
        return Check(name="final_state", status=Status.not_verified, detail=str(error))
    leaves = {name: digest for name, digest in everything.items() if counts(name)}
    wrong = [(name, own[name]) for name in differing(leaves, own)]
    everywhere = ranks.collect((wrong, set(own)))
    return ranks.decide(lambda: _final_state(everywhere, leaves, reference=reference, step=step))


def _final_state(
    everywhere: Sequence[tuple[Sequence[tuple[str, str]], set[str]]],
    leaves: Mapping[str, str | None],
    *,
    reference: str,
    step: int,
) -> Check:
    """What it comes to, of each rank's leaves that differ and those that it holds."""
    held = set().union(*(names for _, names in everywhere))
    missing = sorted(set(leaves) - held)
    first = min(((*found[0], rank) for rank, (found, _) in enumerate(everywhere) if found), default=None)
    if first is None and missing:
        first = (missing[0], "absent", 0)
    if first is None:
        detail = f"{len(held)} leaves on {counted(len(everywhere), 'rank')} equal those of {reference}"
        return Check(name="final_state", status=Status.equal, detail=detail)
    name, got, rank = first
    count = len(set(missing).union(leaf for found, _ in everywhere for leaf, _ in found))
    return Check(
        name="final_state",
        status=Status.different,
        detail=f"{count} leaves differ from {reference}, the first is '{name}' on rank {rank}",
        first_difference=Difference.of_leaf(name, step=step, rank=rank, expected=leaves.get(name) or "absent", got=got),
    )


def _different(name: str, first: Mismatch, how: str) -> Check:
    return Check(
        name=name,
        status=Status.different,
        detail=f"{first}; {how}",
        first_difference=first.as_difference(),
    )
