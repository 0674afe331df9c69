"""The command line that all tools share: how they are found, and how they end."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ckptrun.tools.cli import COMMANDS
from tests.tools.run_tool import COMMAND, ROOT, run_tool, run_without_torch, start_tool
from tests.tools.saved import save

EXAMPLE = ROOT / "tests/engine/golden/format_1_one_rank"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_tool_explains_itself_without_torch(command: str) -> None:
    ended = run_without_torch(command, "--help")
    assert ended.code == 0, ended.errors
    assert ended.output.startswith(f"usage: ckptrun {command} ")
    assert "Exit codes: 0" in ended.output


@pytest.mark.parametrize("command", COMMANDS)
def test_a_mistyped_option_ends_with_code_2_and_no_stack(command: str) -> None:
    # Help needs no argument.
    for arguments in (["--nonsense"],) if command == "help" else ([], ["--nonsense"]):
        ended = run_tool(command, *arguments)
        assert ended.code == 2
        assert ended.output == ""
        assert "Traceback" not in ended.errors


def test_the_help_of_runs_names_the_tools() -> None:
    ended = start_tool("--help")
    assert ended.code == 0
    assert "inspect|verify|diff|convert" in ended.output


def test_what_is_no_tool_goes_to_the_config() -> None:
    ended = start_tool("inspekt", str(EXAMPLE))
    assert ended.code == 2
    assert "inspekt" in ended.errors


def test_a_process_ends_as_the_function_does(tmp_path: Path) -> None:
    for arguments, code in (([EXAMPLE], 0), ([tmp_path], 2), ([], 2)):
        started, called = start_tool("verify", *arguments), run_tool("verify", *arguments)
        assert started.code == called.code == code
        assert started.errors.splitlines()[-1:] == called.errors.splitlines()[-1:]


INTERRUPTED = """
import os, signal, sys, time
from ckptrun.tools.check_file import FileCheck
def work(self, piece, buffer):
    with open(begun, "a") as file:
        file.write("x")
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.1)
FileCheck.work = work
begun = sys.argv.pop()
from ckptrun.__main__ import main
sys.argv = ["ckptrun", "verify", sys.argv[1]]
sys.exit(main())
"""


def test_ctrl_c_ends_a_tool_at_once_and_without_a_stack(tmp_path: Path) -> None:
    folder = save(tmp_path / "long", {"w": torch.ones(100, 2**20)})
    begun = tmp_path / "begun"
    ended = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, str(folder), str(begun)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", "ckptrun: interrupted.\n")
    assert 0 < begun.stat().st_size < 50, "pieces of a hundred"


def test_a_reader_that_has_seen_enough_gets_no_stack() -> None:
    command = f"{' '.join(COMMAND)} inspect {EXAMPLE} --json | head -c 10"
    ended = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.stdout == '{\n  "path"'
    assert ended.stderr == ""


def test_an_output_that_knows_only_ascii_is_no_reason_to_fail(tmp_path: Path) -> None:
    folder = save(tmp_path / "names", {"gewicht_ä_重み": torch.ones(1)})
    code = "import sys; from ckptrun.__main__ import main; sys.exit(main())"
    ended = subprocess.run(
        [sys.executable, "-c", code, "inspect", str(folder)],
        cwd=ROOT,
        capture_output=True,
        check=False,
        env={"PYTHONIOENCODING": "ascii", "PATH": "/usr/bin:/bin"},
    )
    assert ended.returncode == 0, ended.stderr
    assert b"gewicht_\\xe4_\\u91cd\\u307f" in ended.stdout
