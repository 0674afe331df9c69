"""Runs a tool as users do: in this process, as a process of its own, or on a terminal."""

import contextlib
import fcntl
import io
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptrun.tools.cli import main

ROOT = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, "-m", "ckptrun")


@dataclass(frozen=True)
class Ended:
    """What a tool came to."""

    code: int
    output: str
    errors: str

    @property
    def document(self) -> Any:
        """What it printed with ``--json``."""
        return json.loads(self.output)


def run_tool(*argv: object) -> Ended:
    """Run it in this process."""
    with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.redirect_stderr(io.StringIO()) as errors:
        try:
            code = main([str(arg) for arg in argv])
        except SystemExit as ended:
            code = int(ended.code or 0)
    return Ended(code, output.getvalue(), errors.getvalue())


def start_tool(*argv: object) -> Ended:
    """Run it as a process."""
    done = subprocess.run(
        [*COMMAND, *map(str, argv)], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def run_on_terminal(*argv: object, columns: int = 160) -> Ended:
    """Run it as a process whose output and errors are one terminal."""
    process, terminal = pty.fork()
    if not process:
        os.chdir(ROOT)
        environment = {key: value for key, value in os.environ.items() if key != "NO_COLOR"} | {"TERM": "xterm"}
        os.execve(sys.executable, [*COMMAND, *map(str, argv)], environment)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    raw = b""
    with contextlib.suppress(OSError):  # how a terminal says that the other side is gone
        while part := os.read(terminal, 65536):
            raw += part
    os.close(terminal)
    _, status = os.waitpid(process, 0)
    return Ended(os.waitstatus_to_exitcode(status), raw.decode(), "")


def run_without_torch(*argv: object) -> Ended:
    """Run it as a process that ends with 99 if torch was imported."""
    code = (
        "import sys; from ckptrun.tools.cli import main; code = main(sys.argv[1:]);"
        "sys.exit(99 if 'torch' in sys.modules else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, argv)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return Ended(done.returncode, done.stdout, done.stderr)
