"""What the processes of a start have said, put together."""

import json
from pathlib import Path

from ckptrun.foreign.records import read_heard


def said(folder: Path, name: str, *events: dict) -> None:
    """Write what one process has said."""
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))


def test_the_first_exception_is_the_one_that_others_may_have_failed_for(tmp_path: Path) -> None:
    process = {"event": "process", "pid": 1, "python": "python", "argv": ["train.py"], "environment": {}}
    for name, time, text in [
        ("0-launcher", 30.5, "ChildFailedError: train.py"),
        ("1-rank", 20.25, "RuntimeError: Connection closed by peer"),
        ("2-rank", 20.125, "EOFError"),
    ]:
        said(tmp_path, name, process, {"event": "exception", "time": time, "text": text})
    said(tmp_path, "3-rank", process)
    (heard,) = read_heard(tmp_path)
    assert heard.exceptions == [
        "EOFError",
        "RuntimeError: Connection closed by peer",
        "ChildFailedError: train.py",
    ]
