"""``python -m ckptrun``, ``torchrun -m ckptrun`` and the console script ``ckptrun``."""

import os
import signal
import sys
import warnings
from types import FrameType


class _Ended(BaseException):  # as KeyboardInterrupt: no error of anybody
    """SIGTERM came where no ranks are looked after."""


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    raise _Ended


def main() -> int:
    """Run the command line: a question or a tool, see ``ckptrun.tools.cli``; anything else, ``ckptrun.app``.

    Returns the exit code of a tool; the rest ends the process with its own. SIGTERM is answered as before afterwards.
    """
    answer = signal.getsignal(signal.SIGTERM)
    try:
        arguments = sys.argv[1:]
        if arguments[:1] == ["--version"]:
            from ckptrun import __version__

            sys.stdout.write(f"ckptrun {__version__}\n")
            return 0
        from ckptrun.tools.cli import COMMANDS
        from ckptrun.tools.cli import main as run_tool

        # Overrides have a '=' or begin with '-' or '~': none is taken for a tool.
        if arguments and arguments[0] in COMMANDS:
            if not sys.warnoptions:
                # What torch warns its users of is not for those of a tool.
                warnings.simplefilter("ignore")
            return run_tool(arguments)
        if "--help" in arguments or "-h" in arguments:
            return run_tool(
                ["help", "--overview", *(text for text in arguments if "=" in text and not text.startswith("-"))]
            )
        if "RANK" not in os.environ:
            # Ranks of another launcher answer it when they can save.
            signal.signal(signal.SIGTERM, _on_sigterm)
        from ckptrun.app import main as run

        run()
    except _Ended:
        sys.stderr.write("ckptrun: ended by SIGTERM. Run the same command again.\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("ckptrun: interrupted.\n")
        return 1
    finally:
        if signal.getsignal(signal.SIGTERM) is _on_sigterm:
            signal.signal(signal.SIGTERM, answer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
