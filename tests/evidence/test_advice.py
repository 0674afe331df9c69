"""What a person is told of a difference: numbers, not digests; what usually causes it; nothing cut, in 80 columns."""

import pytest

from ckptrun.config.run import COMPONENTS
from ckptrun.evidence.advice import advice
from ckptrun.evidence.difference import Difference
from ckptrun.evidence.mismatch import Mismatch
from ckptrun.evidence.verdict import Check, Status, Verdict, read_verdict, verdict_of
from ckptrun.proof.view import text_of
from tests.support.configs import config_of
from tests.support.hand_made import own_job


@pytest.mark.parametrize(
    ("check", "blame", "what", "words"),
    [
        ("trajectory", "model", "output", "register_buffer"),
        ("trajectory", "model", "input", "register_buffer"),
        ("trajectory", "model", "random stream", "second forward"),
        ("trajectory", "optimizer", "update", "self.state[parameter]"),
        ("trajectory", "optimizer", "kept gradient", "carried from one step to the next"),
        ("trajectory", "schedule", "option", "step()"),
        ("trajectory", "data", "batch", "Give the dataset state_dict"),
        ("trajectory", "mine", "random stream", "a generator of its own"),
        ("trajectory", "mine", "weight", "load_state_dict"),
        ("trajectory", "progress", "", "counted"),
        ("loaded_equals_saved", "data", "", "state_dict and load_state_dict of your dataset"),
        ("replicas", "model", "", "not reduced"),
    ],
)
def test_it_says_what_usually_causes_it_and_where_to_look(check, blame, what, words) -> None:
    assert words in advice(check, "x", blame=blame, first=Difference(details={"what": what}))


@pytest.mark.parametrize("blame", [*COMPONENTS, "mine"])
@pytest.mark.parametrize("check", ["loaded_equals_saved", "trajectory", "final_state", "second_resume"])
def test_there_is_a_line_for_every_component(check, blame) -> None:
    said = advice(check, "x", blame=blame, first=Difference(component=blame))
    assert said
    assert "\n" not in said
    assert len(said) < 260


def test_a_job_that_does_not_repeat_itself_is_told_so_whatever_differs() -> None:
    assert "unseeded" in advice("trajectory", "not deterministic: x", blame=None, first=None)


def test_it_names_the_code_of_the_user() -> None:
    config = config_of(
        "model=mlp", "data=random", "components.mine._target_=a.py:B", "optimizer=custom", "optimizer._target_=c.D"
    )
    job = own_job(config)
    assert job.code_of("mine") == " It is components.mine._target_=a.py:B."
    assert job.code_of("optimizer") == " It is optimizer._target_=c.D."
    assert job.code_of("model") == job.code_of("rng") == job.code_of(None) == ""


@pytest.mark.parametrize(
    ("field", "expected", "got", "words"),
    [
        ("loss", (0.5).hex(), (0.5000001).hex(), "loss 0.5 in the reference, 0.5000001 here (900719925 ULP apart)"),
        ("rng.torch_cpu", "0123456789abcdef", "fedcba9876543210", "random stream torch_cpu stands elsewhere than in the reference"),
        ("batch", "a" * 32, "b" * 32, "the batch is another one than in the reference"),
        ("skipped", False, True, "skipped False in the reference, True here"),
        ("model.first.weight", "a" * 32, "b" * 32, "'model.first.weight' has other bits than in the reference"),
    ],
)  # fmt: skip
def test_a_step_that_differs_is_told_in_numbers_or_words_never_in_digests(field, expected, got, words) -> None:
    assert str(Mismatch(step=7, rank=1, field=field, expected=expected, got=got)) == f"step 7, rank 1: {words}"


def test_a_verdict_is_printed_whole_in_80_columns_with_what_to_do(tmp_path) -> None:
    first = {
        "step": 7, "rank": 0, "component": "mine", "leaf": "torch_cpu random stream", "index": None,
        "expected": 0.13334040343761444, "expected_bits": "0x1.1114c60000000p-3",
        "got": 0.13342438638210297, "got_bits": "0x1.1140ce0000000p-3", "ulp": 5636, "what": "random stream",
    }  # fmt: skip
    detail = (
        "hidden state: every leaf was equal after the load, and yet "
        + "a long name of something, " * 12
        + "and the values"
    )
    verdict = verdict_of(
        [Check(name="trajectory", status=Status.different, detail=detail, first_difference=Difference.from_json(first))]
    )
    assert verdict.advice.startswith("Its on_step draws")
    text = text_of(verdict)
    assert max(map(len, text.splitlines())) <= 80
    joined = " ".join(text.split())
    assert detail in joined
    assert verdict.advice in joined
    assert "expected 0.13334040343761444 bits 0x1.1114c60000000p-3" in joined
    assert verdict.as_json()["advice"] == verdict.advice
    assert verdict_of([Check(name="trajectory", status=Status.equal, detail="x")]).advice == ""


def test_what_an_older_version_has_left_has_no_advice(tmp_path) -> None:
    content = '{"verdict": "equal", "checks": [], "first_difference": null, "blame": null, "reason": ""}'
    (tmp_path / "verdict.json").write_text(content)
    assert read_verdict(tmp_path) == Verdict(status=Status.equal, checks=[], path=str(tmp_path))


def test_digests_are_left_to_the_file() -> None:
    first = {
        "step": 1,
        "rank": 0,
        "component": "rng",
        "leaf": "random stream python",
        "expected": "0" * 16,
        "got": "1" * 16,
    }
    text = text_of(
        verdict_of(
            [
                Check(
                    name="trajectory", status=Status.different, detail="x", first_difference=Difference.from_json(first)
                )
            ]
        )
    )
    assert "first      step 1, rank 0, random stream python" in text
    assert "0000" not in text
