"""Write report.html of a sweep, a proof or a run anew, from what is on disk.

FOLDER may be done, half done, killed, or still running; of any job, ckptrun's own or a command's. What cannot be read
is told in the report.

Exit codes: 0 written, 2 there is nothing to report on.
"""

import argparse
from pathlib import Path

from ckptrun.console import say
from ckptrun.exit_codes import ExitCode
from ckptrun.report.write import write_report
from ckptrun.text import printable

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="of a sweep, a proof or a run")
    parser.add_argument("--against", metavar="OLDER", type=Path, help="an older sweep: also say what has changed since")


def run(args: argparse.Namespace) -> int:
    """Write it, and say where it is."""
    say(printable(str(write_report(args.folder, against=args.against))))
    return ExitCode.done
