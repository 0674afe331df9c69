"""Every command and snippet of the README, read from the README, is one that works.

Commands are taken from indented blocks, from the table of commands and from the CI example. ``...`` stands for any run;
here it is a small one (``SMALL``). Each is read and composed, as ``--cfg job`` does; tools are called on places that are
not there; the example of the storage engine runs. Under ``slow`` each command is typed as it stands, in a folder of a
reader who has ``examples/`` there, and the examples of CI and pytest prove a model.
"""

import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ckptrun.__main__ import main
from ckptrun.command_line import read_command_line
from ckptrun.config.compose import config_from
from ckptrun.config.mistakes import check_overrides
from ckptrun.tools.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
SMALL = "model.layers=1 model.width=32 model.heads=2 model.context=16 train.micro_batch=2 data.max_bytes=20000"
# What "..." stands for where keys of a model of one's own follow: the command above it in the README.
OWN = "model=custom model._target_=examples/mine.py:Net model.loss=mse data=custom data._target_=examples/mine.py:Pairs"
OPENINGS = ("ckptrun ", "python -m ckptrun", "torchrun ")


def commands() -> list[str]:
    """What a reader would type, one line each, in the order of the README."""
    text = README.replace(" \\\n", " ").replace("\\|", "|")
    fenced = re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL)
    outside = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    found = [line.strip() for line in outside.splitlines() if line.startswith("    ")]
    found += [
        part
        for row in outside.splitlines()
        if row.startswith("| `")
        for part in re.findall(r"`([^`]+)`", row.split(" | ")[0])
    ]
    found += [
        line.partition("run: ")[2]
        for kind, block in fenced
        if kind == "yaml"
        for line in block.splitlines()
        if "run: " in line
    ]
    return [re.split(r"\s{2,}[#(]", line)[0].strip() for line in found if line.startswith(OPENINGS)]


def overrides_of(command: str) -> list[str]:
    """The arguments of ``ckptrun`` in ``command``, with ``...`` filled in."""
    words = shlex.split(command.replace(" -m ckptrun", " ckptrun"))
    arguments = words[words.index("ckptrun") + 1 :]
    filled = OWN if any(argument.startswith("model.") for argument in arguments) else SMALL
    return [word for argument in arguments for word in (filled.split() if argument == "..." else [argument])]


RUNS = [text for text in commands() if not text.split()[1:2] or text.split()[1] not in COMMANDS]
TOOLS = [text for text in commands() if text.split()[1:2] and text.split()[1] in COMMANDS]


def test_the_readme_holds_the_commands_that_are_looked_for() -> None:
    """What is read from the README is not nothing."""
    assert len(RUNS) >= 20
    assert {text.split()[1] for text in TOOLS} == set(COMMANDS)
    assert any("experiment=smoke" in text and "my_package" in text for text in RUNS)


@pytest.mark.parametrize("command", RUNS)
def test_a_command_of_the_readme_composes(command, capsys, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    arguments = overrides_of(command)
    if "--help" in arguments or "--version" in arguments:
        monkeypatch.setattr(sys, "argv", ["ckptrun", *arguments])
        assert main() == 0
        assert capsys.readouterr().out
        return
    line = read_command_line(arguments)
    if not line.is_sweep:
        config_from(line.overrides)
        return
    check_overrides(line.overrides, added={})
    values = [
        [f"{key}={value}" for value in values.split(",")]
        for key, _, values in (text.partition("=") for text in line.overrides)
    ]
    # The first and the last cell: between them every value of the README's sweeps is met.
    cells = list(itertools.product(*values))
    for cell in {cells[0], cells[-1]}:
        config_from(cell)


@pytest.mark.parametrize("command", TOOLS)
def test_a_tool_of_the_readme_takes_its_arguments(command, capsys) -> None:
    """Its options exist: the places are not there, which is another exit code than that of a wrong command line."""
    words = [word.split("|")[0] for word in shlex.split(command)[1:]]
    if words[0] == "help":
        words = words[:2]
    from ckptrun.tools.cli import main as run_tool

    code = run_tool(words)
    said = capsys.readouterr()
    assert "unrecognized arguments" not in said.err
    assert code == (0 if words[0] == "help" else 2), said
    assert words[0] == "help" or "there" in said.err or "no " in said.err


def snippets() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_every_snippet_is_python() -> None:
    assert len(snippets()) >= 2
    for text in snippets():
        compile(text, "README.md", "exec")


@pytest.mark.filterwarnings("ignore")
def test_the_snippet_of_the_storage_engine_runs(tmp_path) -> None:
    (text,) = [text for text in snippets() if "ShardWriter" in text]
    state = {"weight": torch.arange(6.0), "step": 3}
    names = {"state": state, "tensor_or_dtensor": torch.ones(2)}
    # The future of the asynchronous save is waited for, as a program that goes on would.
    code = text.replace('"/data/', f'"{tmp_path}/').replace("dcp.async_save(", "saving = dcp.async_save(")
    code = code.replace("digest(tensor_or_dtensor)", "saving.result(); said = digest(tensor_or_dtensor)", 1)
    exec(compile(code, "README.md", "exec"), names)
    assert len(names["said"]) == 32
    for step in (20, 40, 60):
        assert (tmp_path / f"step_{step:08d}" / "manifest.json").is_file()


@pytest.mark.slow
def test_the_ci_line_and_the_pytest_example_prove_a_model_of_ones_own(tmp_path) -> None:
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package/__init__.py").write_text("")
    (tmp_path / "my_package/model.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Sequential):\n    def __init__(self):\n"
        "        super().__init__(nn.Embedding(256, 16), nn.Dropout(0.1), nn.Linear(16, 256))\n"
    )
    (example,) = [text for text in snippets() if "def test_" in text]
    (tmp_path / "test_example.py").write_text(example)
    (line,) = [text for text in RUNS if "my_package" in text]
    for command in (["-m", "ckptrun", *overrides_of(line)], ["-m", "pytest", "-q", "test_example.py"]):
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=600
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def typed(command: str) -> str:
    """``command`` as a reader types it who fills in what it leaves open."""
    words, _, arguments = command.partition("ckptrun ... ")
    if arguments:
        filled = OWN if arguments.startswith(("parallelism=fsdp_tp", "model.")) else SMALL
        if arguments.startswith("proof.reference"):
            filled += " run.name=again train.steps=200"
        if arguments.startswith("checkpoint.resume=outputs"):
            filled += " run.name=longer train.steps=220"
        command = f"{words}ckptrun {filled} {arguments}"
    if command.startswith("ckptrun -m "):
        command += f" {SMALL} train.steps=4 checkpoint.interval_steps=2"  # else the longest of all
    return command.replace("--max-restarts 2 ...", "--max-restarts 2 --nproc-per-node 1")


@pytest.mark.slow
def test_every_command_of_the_readme_does_what_it_says(tmp_path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"

    def run(command: str) -> str:
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done.stdout + done.stderr

    # `make run` is the line of torchrun and four ranks; CI types it. my_package has a test of its own, below.
    lines = [typed(command) for command in RUNS if "my_package" not in command and "--nproc-per-node 4" not in command]
    # Others begin with the first run, or compare with it.
    for command in sorted(dict.fromkeys(lines), key=lambda command: "run.name=first" not in command):
        said = run(command)
        if ("fault=" in command and "torchrun" not in command) or "proof=full" in command or "smoke" in command:
            assert "verdict              EQUAL" in said, said
        elif "--" not in command and " -m " not in command:
            assert "bitwise equal at step" in said, said
    checkpoint = "outputs/default/first/checkpoints/step_00000200"
    for command in TOOLS:
        if command.startswith("ckptrun convert"):
            source, _, formats = command.partition("--to ")
            for to in formats.split("|"):
                target = {"torch": "state.pt", "safetensors": "state.safetensors"}.get(to, f"as_{to}")
                run(f"{source.replace('SRC DST', f'{checkpoint} {target}')} --to {to}")
                # torch numbers the state of an optimizer, safetensors holds tensors only.
                run(f"ckptrun diff {checkpoint} {target} {'--only model' if to in ('torch', 'safetensors') else ''}")
        else:
            assert run(
                command.replace("CKPT", checkpoint).replace("A B", "outputs/default/first outputs/default/first")
            )
