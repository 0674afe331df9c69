"""Leaves held against each other by their digests, by name. Torch-free."""

from collections.abc import Mapping

from ckptrun.engine.backends.interface import Url
from ckptrun.engine.manifest import read_manifest

__all__ = ["differing", "saved_digests"]


def saved_digests(folder: Url) -> dict[str, str | None]:
    """Return leaf name -> digest of what was live when the checkpoint was requested; None: it has none."""
    return {leaf.name: leaf.digest for leaf in read_manifest(folder).leaves.values()}


def differing(expected: Mapping[str, str | None], got: Mapping[str, str]) -> list[str]:
    """Return the leaves in ``got`` that have another digest in ``expected``, or are not there; by name."""
    return sorted(name for name, digest in got.items() if expected.get(name) != digest)
