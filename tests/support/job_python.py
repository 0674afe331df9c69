"""The interpreter of the jobs that tests listen to: ours, or one with another Python and another torch."""

import os
import sys

JOB_PYTHON = os.environ.get("CKPTRUN_JOB_PYTHON", sys.executable)
"""Of another environment where ``CKPTRUN_JOB_PYTHON`` says so; ckptrun need not be installed there."""
