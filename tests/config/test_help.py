"""``ckptrun --help``, ``ckptrun help`` and ``docs/config.md`` say every choice and every key, each with a sentence."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from ckptrun import __version__
from ckptrun.__main__ import main
from ckptrun.config.choices import CONF_DIR, default_choices
from ckptrun.config.compose import config_from
from ckptrun.config.keys import all_keys, keys_of_choice, sentence
from ckptrun.config.run import to_plain
from ckptrun.config.schemas import SCHEMAS
from ckptrun.tools.help_text import page

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def ask(monkeypatch, capsys):
    """Runs a command line that only asks; gives the exit code and what was printed."""

    def asked(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ckptrun", *arguments])
        code = main()
        return code, *capsys.readouterr()

    return asked


def test_help_lists_every_choice(ask) -> None:
    code, text, _ = ask("--help")
    assert code == 0
    lines = text.split("Choices")[1].split("(* what is chosen")[0].splitlines()[1:]
    listed = dict(line.split(None, 1) for line in lines if line.strip())
    found = {path.parent.name: set() for path in CONF_DIR.glob("*/*.yaml")}
    for path in CONF_DIR.glob("*/*.yaml"):
        found[path.parent.name].add(path.stem)
    assert {group: {name.rstrip("*") for name in names.split()} for group, names in listed.items()} == found
    chosen = {group: name for group, names in listed.items() for name in names.split() if name.endswith("*")}
    assert {group: name.rstrip("*") for group, name in chosen.items()} == default_choices()


def test_help_says_of_every_key_its_value_and_a_sentence(ask) -> None:
    _, text, _ = ask("--help")
    said = {line.strip().partition("=")[0]: line.strip() for line in text.splitlines() if line.startswith("  ")}
    plain = to_plain(config_from([]))
    for section, content in plain.items():
        names = [f"{section}.{key}" for key in content if key != "choice"] if isinstance(content, dict) else [section]
        for name in names:
            assert len(said[name].split(None, 1)[1].strip()) > 5, f"{name} has no sentence"
    assert said["train.steps"] == "train.steps=60                 Optimizer steps of the whole run, over all resumes."
    assert said["optimizer.lr"].startswith("optimizer.lr=0.003 ")


def test_the_values_in_the_help_are_those_that_a_run_gets() -> None:
    chosen = {
        "parallelism": "fsdp_tp",
        "optimizer": "muon",
        "fault": "bit_flip",
        "checkpoint": "async",
        "schedule": "wsd",
        "model": "moe",
    }
    plain = to_plain(config_from([f"{group}={choice}" for group, choice in chosen.items()]))
    for group, choice in {**default_choices(), **chosen}.items():
        for key in keys_of_choice(group, choice):
            assert plain[group][key.name.partition(".")[2]] == key.default, key.name


def test_choices_on_the_command_line_decide_which_keys_are_shown(ask) -> None:
    _, text, _ = ask("model=cnn", "data=shapes", "--help")
    assert "model.channels=[8, 16, 32]" in text
    assert "model.heads" not in text
    assert "data.size=16" in text


@pytest.mark.parametrize(
    ("topic", "words"),
    [
        ("model", ["model=cnn", "BatchNorm", "model.heads=4", "(the default)", "[gpt, moe]"]),
        ("model=moe", ["model.experts=4", "model.width=64"]),
        ("train", ["train.steps=60", "train.freeze=[]"]),
        ("train.global_batch", ["Default: null", "whole number or null", "must be left at 1"]),
        ("model.width", ["Default: 64", "model=gpt, model=moe"]),
        ("proof.reload", ["every_save", "right after its commit"]),
        ("checkpoint.load.only", ["only, exclude: components by name"]),
        ("experiment", ["experiment=smoke", "Proves in seconds"]),
        ("fault", ["fault=sigkill", "The rank is killed, without a word."]),
    ],
)
def test_help_on_one_topic(ask, topic, words) -> None:
    code, text, _ = ask("help", topic)
    assert code == 0
    for word in words:
        assert word in text
    assert "``" not in text


@pytest.mark.parametrize(("topic", "near"), [("modle", "model"), ("train.stepz", "train.steps"), ("model=gtp", "gpt")])
def test_help_on_what_does_not_exist_names_what_is_near(ask, topic, near) -> None:
    code, text, errors = ask("help", topic)
    assert (code, text) == (2, "")
    assert f"did you mean {near}?" in errors
    assert errors.count("\n") == 1


def test_version_is_that_of_ckptrun(ask) -> None:
    assert ask("--version") == (0, f"ckptrun {__version__}\n", "")
    metadata = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{__version__}"' in metadata


def test_the_page_of_all_keys_is_current() -> None:
    """Made with ``python -m ckptrun help --markdown > docs/config.md``."""
    text = page()
    assert (ROOT / "docs/config.md").read_text() == text + "\n"
    for name in all_keys():
        assert f"`{name}`" in text


def test_a_sentence_ends_where_the_next_begins_with_a_capital() -> None:
    assert sentence("Paths, e.g. ``a``, i.e. this. The rest.") == "Paths, e.g. ``a``, i.e. this."
    assert sentence("One line\ngoes on.\n\n- a list") == "One line goes on."


def test_help_reads_no_torch_and_no_hydra() -> None:
    """What makes it answer at once: torch takes seconds to load, Hydra half of one and as long again to compose."""
    code = (
        "import sys; sys.argv[1:] = ['--help']; from ckptrun.__main__ import main; main();"
        "sys.exit(any(name in sys.modules for name in ('torch', 'hydra', 'numpy')))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, sorted(done.stderr)


def test_every_schema_says_what_it_is() -> None:
    for schemas in SCHEMAS.values():
        for cls in schemas.values():
            module = ast.parse(Path(str(sys.modules[cls.__module__].__file__)).read_text())
            (found,) = [n for n in ast.walk(module) if isinstance(n, ast.ClassDef) and n.name == cls.__name__]
            assert ast.get_docstring(found), cls
