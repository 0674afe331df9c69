"""For tests that record system calls; where strace is not installed they are skipped. ``.ci/run`` installs it."""

import shutil

import pytest

__all__ = ["needs_strace"]

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed: apt install strace")
