"""``python -m ckptrun``, ``torchrun -m ckptrun`` and the console script ``ckptrun``."""

import sys


def main() -> None:
    """Run the command line; see ``ckptrun.app``."""
    try:
        from ckptrun.app import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("ckptrun: interrupted.\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
