"""Every planted bug must be found, at the right place, and the right component be blamed. See ``cases.py``."""

import pytest

from tests.zoo.cases import CASES
from tests.zoo.run_case import run_case

pytestmark = [pytest.mark.distributed, pytest.mark.crash]


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=c.name, marks=[] if c.is_quick else [pytest.mark.slow]) for c in CASES]
)
def test_the_proof_finds_it_and_blames_the_right_one(case, tmp_path) -> None:
    outcome = run_case(case, tmp_path)
    assert outcome.wrong(case) == [], outcome.found["reason"] or outcome.done
