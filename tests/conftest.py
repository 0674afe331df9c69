"""What all tests share."""

import gc
import os
from collections.abc import Iterator

import pytest

# One thread per rank: there are more ranks than cores, and the number of threads decides bits.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# torch's remarks on how to tune it would fill every failure report.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

pytest.register_assert_rewrite("tests.support.jobs", "tests.engine.backends.conformance")


# These take longest, of the default tests or of the slow ones. Begun last, one of them would be waited for alone.
FIRST = (
    "test_readme",
    "trainers/",
    "foreign/test_prove",
    "jobs/test_proof",
    "parallelism/test_table",
    "zoo/test_planted",
    "crash/test_prove",
    "engine/test_failed_calls",
    "zoo/test_sound",
    "engine/test_crash_matrix",
    "jobs/",
    "sweep/",
    "package/",
    "parallelism/",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the modules that take longest; pytest-xdist keeps the order with ``--no-loadscope-reorder``."""

    def place(item: pytest.Item) -> int:
        return next((i for i, name in enumerate(FIRST) if f"tests/{name}" in item.nodeid), len(FIRST))

    items.sort(key=place)


def pytest_collection_finish() -> None:
    """Leave what all tests share out of Python's collections: each would walk over it, and forked processes copy it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def _ranks_end_with_their_module() -> Iterator[None]:
    yield
    from tests.support.run_ranks import end_kept_ranks

    end_kept_ranks()
