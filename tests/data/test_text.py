import re

import pytest
import torch

from ckptrun.data import PythonSource, Text
from ckptrun.errors import ConfigError


@pytest.fixture
def folder(tmp_path):
    """A folder with a space in its name, and two texts in it."""
    place = tmp_path / "my books"
    (place / "deep").mkdir(parents=True)
    (place / "b.txt").write_bytes(b"0123456789")
    (place / "deep" / "a.txt").write_bytes(b"abcdefgh")
    return place


def test_a_sample_is_a_sequence_and_its_next_bytes(folder):
    text = Text([str(folder / "b.txt")], context=4)
    assert len(text) == 2
    inputs, targets = text[1]
    assert (bytes(inputs.tolist()), bytes(targets.tolist())) == (b"4567", b"5678")
    assert inputs.dtype is targets.dtype is torch.int64


def test_globs_and_home_are_understood_and_each_file_is_read_once(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    text = Text(["~/deep/*.txt", str(folder / "**" / "*.txt")], context=17)
    assert bytes(text[0][0].tolist()) == b"abcdefgh012345678"


def test_relative_patterns_start_in_the_working_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert bytes(Text(["deep/*"], context=7)[0][0].tolist()) == b"abcdefg"


def test_a_name_with_brackets_is_a_file_before_it_is_a_pattern(folder):
    (folder / "c[1].txt").write_bytes(b"xyz")
    assert bytes(Text([str(folder / "c[1].txt")], context=2)[0][0].tolist()) == b"xy"


def test_max_bytes_limits_what_is_read(folder):
    text = Text([str(folder / "**" / "*.txt")], context=11, max_bytes=12)
    assert bytes(text[0][1].tolist()) == b"123456789ab"


@pytest.mark.parametrize("pattern", ["nothing/*.txt", "missing.txt"])
def test_a_pattern_that_matches_nothing_is_named(folder, monkeypatch, pattern):
    monkeypatch.chdir(folder)
    with pytest.raises(
        ConfigError,
        match=rf"data\.files: no file matches '{re.escape(pattern)}' \(looked from {re.escape(str(folder))}\)",
    ):
        Text(["b.txt", pattern], context=2)


def test_a_folder_is_answered_with_the_pattern_for_its_files(folder):
    with pytest.raises(ConfigError, match=r"It is a folder: write '.*deep/\*\*'"):
        Text([str(folder / "deep")], context=2)


def test_a_file_that_cannot_be_read_is_named(folder):
    (folder / "gone.txt").symlink_to(folder / "nowhere")
    with pytest.raises(ConfigError, match=r"data\.files: cannot read .*gone\.txt: No such file"):
        Text([str(folder / "gone*")], context=2)


@pytest.mark.parametrize("context", [10, 11])
def test_too_little_text_is_an_error_that_says_how_much_there_is(folder, context):
    with pytest.raises(ConfigError, match=rf"10 bytes are too few .* model\.context={context}"):
        Text([str(folder / "b.txt")], context=context)


def test_no_files_at_all_is_an_error():
    with pytest.raises(ConfigError, match=r"data\.files must name files"):
        Text([], context=2)


def test_other_text_has_another_fingerprint(folder):
    before = Text([str(folder / "b.txt")], context=2).fingerprint
    (folder / "b.txt").write_bytes(b"0123456780")
    assert Text([str(folder / "b.txt")], context=2).fingerprint != before


def test_python_source_is_real_text_on_every_machine():
    source = PythonSource(context=64, max_bytes=100_000)
    assert len(source) == (100_000 - 1) // 64
    text = b"".join(bytes(source[index][0].tolist()) for index in range(200))
    assert b"def " in text
    assert b"import " in text
    assert PythonSource(context=64, max_bytes=100_000).fingerprint == source.fingerprint


def test_a_python_without_source_files_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    with pytest.raises(ConfigError, match=r"found no \*\.py .* use data=text"):
        PythonSource(context=4, max_bytes=100)
