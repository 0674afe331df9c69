"""``python -m ckptrun``, ``torchrun -m ckptrun`` and the console script ``ckptrun``."""

import sys
import warnings


def main() -> int:
    """Run the command line: a question or a tool, see ``ckptrun.tools.cli``; anything else, ``ckptrun.app``.

    Returns the exit code of a tool; the rest ends the process with its own.
    """
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
        from ckptrun.app import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("ckptrun: interrupted.\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
