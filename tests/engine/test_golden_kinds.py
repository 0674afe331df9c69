"""The kinds of dicts, keys and tensors in tuples that format 1 holds load for ever as what they were."""

from collections import Counter, OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp

from ckptrun import ShardReader, ShardWriter
from ckptrun.engine.manifest import read_manifest
from ckptrun.engine.read_state import read_leaf

FOLDER = Path(__file__).parent / "golden" / "format_1_kinds"

VALUES: dict[str, Any] = {
    "keys": ({1.5: "float", None: 0, True: [], (0, ("a", b"b")): {-0.0: 1}},),
    "dicts": (OrderedDict(z=1, a={2: 3}), Counter({5: 2, 3: 1}), defaultdict(int, x=1), defaultdict(None)),
    "tensors": (torch.tensor([0.1, -0.0], dtype=torch.bfloat16), {"t": torch.arange(3)}, torch.zeros(0, 2)),
    "order": {"z": 1, "b": 2},
}
CONTAINERS = {("values", "order"): "ordereddict", ("other",): "defaultdict:list", ("values",): "tuple"}


def make(folder: Path = FOLDER) -> None:
    """Wrote it once; refuses to write over what is there."""
    dcp.save({"values": VALUES}, storage_writer=ShardWriter(folder, containers=CONTAINERS), no_dist=True)


def test_every_value_comes_back_as_what_it_was() -> None:
    for name in ("keys", "dicts", "tensors"):
        assert repr(read_leaf(FOLDER, f"values.{name}")) == repr(VALUES[name])
    live = {"values": {"order": {"b": 0, "z": 0}, "dicts": None}}
    dcp.load(live, storage_reader=ShardReader(FOLDER), no_dist=True)
    assert repr(live["values"]["dicts"]) == repr(VALUES["dicts"])
    assert list(live["values"]["order"].items()) == [("z", 1), ("b", 2)]
    assert read_manifest(FOLDER).containers == CONTAINERS


def test_they_are_written_today_as_they_were(tmp_path: Path) -> None:
    make(tmp_path / "c")
    for name, leaf in read_manifest(FOLDER).leaves.items():
        assert read_manifest(tmp_path / "c").leaves[name] == leaf
