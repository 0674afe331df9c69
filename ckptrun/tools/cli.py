"""``ckptrun inspect | verify | diff | convert | help``: picks the command; what goes wrong is one line and a code.

Only the module of the command that was asked for is imported, so that a tool that needs no torch loads none.
"""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from ckptrun.console import say_error
from ckptrun.errors import CheckpointDamagedError, CkptrunError, UnsupportedLeafError
from ckptrun.exit_codes import ExitCode, exit_code_of
from ckptrun.text import printable

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "inspect": "show what a checkpoint holds, or which checkpoints a run has",
    "verify": "read and check every byte of a checkpoint",
    "diff": "compare two checkpoints bit by bit, whatever their sharding and format",
    "convert": "turn a checkpoint into another format",
    "report": "write report.html of a sweep, proof or run anew, from what is on disk",
    "help": "say what can be chosen and what each key means",
}


def main(argv: Sequence[str]) -> int:
    """Run the command that ``argv`` begins with, one of ``COMMANDS``; return the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A name that this terminal cannot show must not end the tool.
            stream.reconfigure(errors="backslashreplace")
    command, *arguments = argv
    if command == "help" and len(arguments) == 1 and arguments[0] in COMMANDS:
        command, arguments = arguments[0], ["--help"]
    module = import_module(f"ckptrun.tools.{command}_command")
    parser = argparse.ArgumentParser(
        prog=f"ckptrun {command}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    parsed = parser.parse_args(arguments)
    try:
        code = int(module.run(parsed))
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has seen enough. What is left in the buffer must not be written at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.failed
    except (CkptrunError, OSError) as error:
        say_error(printable(f"ckptrun: {error}"))
        return _code_of(error)
    return code


def _code_of(error: Exception) -> int:
    if isinstance(error, UnsupportedLeafError):
        # The file is whole, and of a kind that is not read: another one, or a part of it, would do.
        return ExitCode.config
    return ExitCode.different if isinstance(error, CheckpointDamagedError) else exit_code_of(error)
