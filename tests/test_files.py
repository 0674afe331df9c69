"""What a run writes for others to read: JSON that every reader takes, numbers as numbers, bits beside them."""

import json
import math

import pytest

from ckptrun.evidence.events import RunRecord
from ckptrun.evidence.mismatch import Mismatch
from ckptrun.files import append_line, read_lines, with_bits, write_json


def strict(text: str) -> object:
    """Read JSON as those do who know no NaN: jq, browsers, other languages."""

    def refuse(word: str) -> object:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("number", [0.1, -0.0, 1e-320, math.pi])
def test_numbers_are_numbers_and_bits_stand_beside_them(tmp_path, number) -> None:
    with RunRecord(tmp_path, first_step=0, has_board=False) as record:
        record.event("step", step=1, **with_bits(loss=number))
    (line,) = (tmp_path / "events.jsonl").read_text().splitlines()
    found = strict(line)
    assert found == {"event": "step", "step": 1, "loss": number, "loss_bits": number.hex()}
    assert math.copysign(1, float.fromhex(found["loss_bits"])) == math.copysign(1, number)


@pytest.mark.parametrize(("number", "bits"), [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf")])
def test_what_json_has_no_number_for_is_null_and_keeps_its_bits(tmp_path, number, bits) -> None:
    content = {"step": 3, "inner": [{"of": (number, 2.5)}], **with_bits(loss=number, norm=None)}
    append_line(tmp_path / "lines", content)
    write_json(tmp_path / "file", content)
    expected = {
        "step": 3,
        "inner": [{"of": [None, 2.5]}],
        "loss": None,
        "loss_bits": bits,
        "norm": None,
        "norm_bits": None,
    }
    assert strict((tmp_path / "lines").read_text()) == strict((tmp_path / "file").read_text()) == expected
    assert read_lines(tmp_path / "lines") == [expected]


def test_a_run_beside_another_one_writes_nothing_for_tensorboard(tmp_path) -> None:
    for name, has_board in (("run", True), ("reference", False)):
        with RunRecord(tmp_path / name, first_step=0, has_board=has_board) as record:
            record.scalars(1, {"train/loss": 0.5})
            record.config({"train": {"steps": 1}})
    assert [path.parts[-3:-1] for path in tmp_path.rglob("*tfevents*")] == [("run", "tensorboard")]
    assert (tmp_path / "reference/config.yaml").read_text() == "train:\n  steps: 1\n"


def test_a_difference_of_steps_has_numbers_beside_bits() -> None:
    found = Mismatch(step=3, rank=0, field="loss", expected=(0.5).hex(), got=(0.75).hex()).as_difference().as_json()
    assert (found["expected"], found["got"]) == (0.5, 0.75)
    assert (found["expected_bits"], found["got_bits"]) == ("0x1.0000000000000p-1", "0x1.8000000000000p-1")
    digests = Mismatch(step=3, rank=0, field="batch", expected="ab", got="cd").as_difference().as_json()
    assert (digests["expected"], digests["got"]) == ("ab", "cd")
