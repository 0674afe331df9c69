"""What all tests share."""

import os

import pytest

# One thread per rank: there are more ranks than cores, and the number of threads decides bits.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# torch's remarks on how to tune it would fill every failure report.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

pytest.register_assert_rewrite("tests.support.jobs")
