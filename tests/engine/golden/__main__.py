"""See the package."""

from tests.engine.golden import _main

if __name__ == "__main__":
    _main()
