"""Which local files of checkpoints are opened to be read, in this process."""

import pytest

from ckptrun.engine.backends.local import LocalBackend

__all__ = ["opened_files"]


def opened_files(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths that are opened from here on, in order."""
    opened: list[str] = []
    original = LocalBackend.open

    def note(backend: LocalBackend, path: str):
        opened.append(path)
        return original(backend, path)

    monkeypatch.setattr(LocalBackend, "open", note)
    return opened
