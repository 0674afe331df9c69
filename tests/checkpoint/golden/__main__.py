"""See the package."""

from tests.checkpoint.golden import _main

if __name__ == "__main__":
    _main()
