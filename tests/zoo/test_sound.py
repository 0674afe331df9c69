"""Jobs that are unusual and right must come out ``equal``: no false alarm. And a proof that proves nothing must say so."""

import pytest

from tests.support.jobs import run_here, verdict
from tests.zoo.case import ALONE, NUMBERS, PROOF
from tests.zoo.sound import DEFAULT, SOUND, VACUOUS

pytestmark = [pytest.mark.distributed, pytest.mark.crash]


@pytest.mark.parametrize(
    "job",
    [pytest.param(job, id=name, marks=[] if name in DEFAULT else pytest.mark.slow) for name, job in SOUND.items()],
)
def test_a_sound_job_is_equal(job, tmp_path) -> None:
    done = run_here(tmp_path, *PROOF, *job)
    found = verdict(tmp_path)
    assert (found["verdict"], int(done)) == ("equal", 0), found["reason"] or done
    assert found["blame"] is None


@pytest.mark.parametrize(
    ("job", "words"), [pytest.param(*found, id=name, marks=pytest.mark.slow) for name, found in VACUOUS.items()]
)
def test_a_control_that_changes_nothing_is_not_verified(job, words, tmp_path) -> None:
    done = run_here(tmp_path, *PROOF, *job)
    found = verdict(tmp_path)
    assert (found["verdict"], int(done)) == ("not_verified", 4), found["reason"] or done
    assert "vacuous" in found["reason"]
    assert words in found["reason"], found["reason"]


def test_the_default_controls_say_what_was_not_exercised_for_a_model_without_dropout(tmp_path) -> None:
    done = run_here(tmp_path, *[text for text in PROOF if "controls" not in text], *NUMBERS, *ALONE)
    assert done == 0, done
    found = verdict(tmp_path)
    assert found["verdict"] == "equal"
    (said,) = [text for text in found["not_exercised"] if text.startswith("control of ")]
    assert said.startswith("control of rng: nothing was drawn from the random streams after step ")
    (controls,) = [check for check in found["checks"] if check["name"] == "controls"]
    assert (controls["status"], controls["covered"]) == ("equal", {"controls": 1})
    assert controls["detail"].startswith("without optimizer:")
