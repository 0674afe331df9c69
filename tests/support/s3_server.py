"""A real S3 server on loopback, in a process of its own that ends with whoever started it."""

import os
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import boto3

ROOT = Path(__file__).resolve().parents[2]


def environment(endpoint: str) -> dict[str, str]:
    """What tells s3fs where the server is and who we are, and keeps it from looking for either elsewhere."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "user",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


class S3Server:
    """A context manager. ``port`` is where it listens; ``objects`` and ``uploads`` look behind the package's back."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.s3_server"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.client: Any = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id="user",
            aws_secret_access_key="secret",
            region_name="us-east-1",
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.client.close()
        # It keeps nothing; a process forked from here may still hold the pipe whose end ends it.
        self._process.kill()
        self._process.communicate()

    def objects(self, bucket: str) -> dict[str, int]:
        """Key -> bytes."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return {found["Key"]: found["Size"] for page in pages for found in page.get("Contents", ())}

    def uploads(self, bucket: str) -> list[str]:
        """Keys of multi-part uploads that are neither complete nor aborted."""
        return sorted(found["Key"] for found in self.client.list_multipart_uploads(Bucket=bucket).get("Uploads", ()))


def _serve() -> None:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    print(server.get_host_and_port()[1], flush=True)
    # Closed when the one who started us ends, in whatever way.
    threading.Thread(target=sys.stdin.read).run()
    server.stop()


if __name__ == "__main__":
    _serve()
