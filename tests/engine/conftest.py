"""The S3 server of the session, and the way to it; the reader that the page of the format shows."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ckptrun.engine.layout import new_save_id
from tests.support.flaky_proxy import FlakyProxy
from tests.support.s3_server import S3Server, environment

PAGE = Path(__file__).resolve().parents[2] / "docs" / "format.md"


@pytest.fixture(scope="session")
def server() -> Iterator[S3Server]:
    with S3Server() as running:
        yield running


@pytest.fixture
def here(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process finds the server, without a proxy."""
    for name, value in environment(server.endpoint).items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def bucket(server: S3Server) -> str:
    name = f"bucket-{new_save_id()}"
    server.client.create_bucket(Bucket=name)
    return name


@pytest.fixture
def url(bucket: str) -> str:
    return f"s3://{bucket}/run"


@pytest.fixture
def proxy(server: S3Server) -> Iterator[FlakyProxy]:
    with FlakyProxy(server.port) as running:
        yield running


@pytest.fixture(scope="session")
def page() -> dict[str, Any]:
    """What its code defines, run as it stands there."""
    code = PAGE.read_text().partition("```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), names)
    return names
