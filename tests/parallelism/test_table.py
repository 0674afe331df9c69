"""docs/parallelism.md says what works; here every cell of its table is tried."""

import os
from pathlib import Path

import pytest

from tests.parallelism.cells import COMPILED, TIED, all_cells, compiled_cells, outcomes, quick_cells, table
from tests.parallelism.training import KINDS
from tests.support.run_ranks import run_ranks

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

_DOCUMENT = Path(__file__).parents[2] / "docs" / "parallelism.md"
_BEGIN, _END = "<!-- table: begin (written by tests/parallelism/test_table.py) -->\n", "<!-- table: end -->"
_WRITE = "CKPTRUN_WRITE_DOCS"


def _outcomes(cells: list, compiled: list) -> dict:
    import torch._inductor.config

    results = outcomes(cells)
    # Four ranks that each start a pool of compilers would fight for the cores.
    torch._inductor.config.compile_threads = 1
    # Otherwise the ninth block of one class would run uncompiled, and the table would say that it works.
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    for cell in compiled:
        # What an earlier cell compiled would be taken for this one.
        torch._dynamo.reset()
        results |= outcomes([cell])
    return results


@pytest.fixture(scope="module")
def results():
    found: list[dict] = [{}, {}, {}, {}]
    # In ranks of their own: none should take what another kind has left for its own, be it a compiled graph.
    for kind in KINDS:
        cells = ([cell for cell in all_of if cell[0] == kind] for all_of in (quick_cells(), compiled_cells()))
        for rank, results in enumerate(run_ranks(_outcomes, 4, *cells, timeout_s=600, fresh=True)):
            found[rank] |= results
    return found


def test_all_ranks_see_the_same(results):
    assert all(rank == results[0] for rank in results)


def test_the_table_in_the_docs_is_what_was_seen(results):
    text = _DOCUMENT.read_text()
    before, rest = text.split(_BEGIN)
    written, after = rest.split(_END)
    seen = f"\n{table(results[0])}\n\n"
    if os.environ.get(_WRITE):
        _DOCUMENT.write_text(f"{before}{_BEGIN}{seen}{_END}{after}")
        return
    assert written == seen, (
        f"docs/parallelism.md is out of date; run this test with {_WRITE}=1 to write the table anew."
    )


def test_every_kind_was_compiled_and_everything_else_was_tried():
    tried = {*quick_cells(), *compiled_cells()}
    assert {kind for kind, model, column in tried if (model, column) == ("mlp", COMPILED)} == set(KINDS)
    assert {column for _, _, column in set(all_cells()) - tried} == {COMPILED, TIED}
