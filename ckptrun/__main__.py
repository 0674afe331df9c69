"""``python -m ckptrun``, ``torchrun -m ckptrun`` and the console script ``ckptrun``."""

import sys
import warnings


def main() -> int:
    """Run the command line: a tool that is named first, see ``ckptrun.tools.cli``; anything else, ``ckptrun.app``.

    Returns the exit code of a tool; the rest ends the process with its own.
    """
    try:
        from ckptrun.tools.cli import COMMANDS
        from ckptrun.tools.cli import main as run_tool

        # Hydra's arguments have a '=' or begin with '-': none is taken for a tool.
        if sys.argv[1:2] and sys.argv[1] in COMMANDS:
            if not sys.warnoptions:
                # What torch warns its users of is not for those of a tool.
                warnings.simplefilter("ignore")
            return run_tool(sys.argv[1:])
        from ckptrun.app import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("ckptrun: interrupted.\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
