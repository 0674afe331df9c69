"""Saves and loads, beside the raw limit of the disk and beside torch's and safetensors' own, in the same run.

    python benchmarks/storage.py [folder]

``folder`` decides which disk is measured (default: the working folder). Needs 8 GiB of memory and 4 GiB of disk. Each
round does each of the cases once, so that a slow minute of the disk hits all of them; figures are medians of rounds.
"""

import contextlib
import io
import logging
import mmap
import multiprocessing
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.futures import Future

from ckptrun import ShardReader, ShardWriter

ROUNDS = 5
GIB = 2**30
BLOCK = 8 * 2**20

State = dict[str, Tensor]


def few_large() -> State:
    """1 GiB in 32 matrices of 32 MiB."""
    return {f"layers.{index}.weight": torch.randn(2048, 4096) for index in range(32)}


def one_thousand() -> State:
    """1 GiB in 1024 matrices of 1 MiB."""
    return {f"layers.{index}.weight": torch.randn(256, 1024) for index in range(1024)}


def thousands_small() -> State:
    """20,000 vectors of 1 KiB."""
    return {f"layers.{index}.bias": torch.randn(256) for index in range(20_000)}


class Figures:
    """Seconds, CPU seconds and peak of extra memory of each case, round by round."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}
        self.cpu: dict[str, list[float]] = {}
        self.memory: dict[str, list[int]] = {}

    @contextlib.contextmanager
    def measure(self, case: str) -> Iterator[None]:
        """Measure the body as one round of ``case``."""
        Path("/proc/self/clear_refs").write_text("5")
        before, cpu, began = _memory("VmRSS"), _cpu(), time.perf_counter()
        yield
        self.seconds.setdefault(case, []).append(time.perf_counter() - began)
        self.cpu.setdefault(case, []).append(_cpu() - cpu)
        self.memory.setdefault(case, []).append(_memory("VmHWM") - before)

    def table(self, size: int, limit: str, *, digits: int = 2) -> None:
        """Print a line for each case, with its rate as a share of that of ``limit``."""
        base = statistics.median(self.seconds[limit])
        print(f"| case | s | GiB/s | of {limit} | CPU s/GiB | extra memory, MiB |\n|---|---|---|---|---|---|")
        for case, seconds in self.seconds.items():
            median = statistics.median(seconds)
            cpu = statistics.median(self.cpu[case]) / (size / GIB)
            extra = statistics.median(self.memory[case]) / 2**20
            rate = size / GIB / median
            print(f"| {case} | {median:.{digits}f} | {rate:.2f} | {base / median:.2f} | {cpu:.2f} | {extra:.0f} |")
        print()


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _memory(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    return 0


def raw_write(path: Path, size: int, block: mmap.mmap, *, direct: bool) -> None:
    """Write ``size`` bytes from page-aligned memory and sync them: what the disk takes."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | (os.O_DIRECT if direct else 0)
    descriptor = os.open(path, flags)
    for offset in range(0, size, BLOCK):
        os.pwrite(descriptor, memoryview(block)[: min(BLOCK, -(-(size - offset) // 4096) * 4096)], offset)
    os.fsync(descriptor)
    os.close(descriptor)


def raw_read(files: list[Path], state: State, threads: int = 2) -> None:
    """Fill the tensors of ``state`` from ``files`` with parallel preadv: what memory and page cache give."""
    descriptors = [os.open(file, os.O_RDONLY) for file in files]
    tasks = []
    offset = 4096
    for tensor in state.values():
        memory = memoryview(tensor.view(-1).view(torch.uint8).numpy())
        for begin in range(0, memory.nbytes, 4 * 2**20):
            part = memory[begin : begin + 4 * 2**20]
            tasks.append((descriptors[0], part, offset))
            offset += part.nbytes
    with ThreadPoolExecutor(threads) as executor:
        list(executor.map(lambda task: os.preadv(task[0], [task[1]], task[2]), tasks))
    for descriptor in descriptors:
        os.close(descriptor)


def synced(path: Path) -> None:
    """Make a file durable, as the others are."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


class NoStorage(StorageWriter, StorageReader):
    """Stores nothing: what a save or load through it takes is DCP's own planning."""

    metadata: Any = None

    def reset(self, checkpoint_id: Any = None) -> None: ...
    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None: ...
    def set_up_storage_reader(self, metadata: Any, is_coordinator: bool, *args: Any, **kwargs: Any) -> None: ...

    def prepare_local_plan(self, plan: Any) -> Any:
        return plan

    def prepare_global_plan(self, plans: Any) -> Any:
        return plans

    def write_data(self, plan: Any, planner: Any) -> Future[list[WriteResult]]:
        done: Future[list[WriteResult]] = Future()
        done.set_result([])
        return done

    def read_data(self, plan: Any, planner: Any) -> Future[None]:
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def finish(self, metadata: Any, results: Any) -> None:
        NoStorage.metadata = metadata

    def read_metadata(self, *args: Any, **kwargs: Any) -> Any:
        return NoStorage.metadata

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True


def fresh(folder: Path) -> Path:
    """Return a path where nothing is, with nothing left to be written by the kernel."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.unlink(missing_ok=True)
    os.sync()
    return folder


def large_states(make: Callable[[], State], folder: Path) -> None:
    """Save and load of 1 GiB, one process."""
    state = make()
    size = sum(tensor.nbytes for tensor in state.values())
    target = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    saves, loads = Figures(), Figures()
    for _ in range(ROUNDS):
        _save_round(state, size, folder, saves)
        _load_round(state, target, folder, loads)
    print(f"### Save, {make.__doc__}\n")
    saves.table(size, "raw O_DIRECT + fsync")
    print(f"### Load from the page cache, {make.__doc__}\n")
    loads.table(size, "raw preadv, 2 threads")
    for name in ("ours", "dcp", "file"):
        fresh(folder / name)


def _save_round(state: State, size: int, folder: Path, figures: Figures) -> None:
    block = mmap.mmap(-1, BLOCK)
    block[:] = os.urandom(BLOCK)
    file = folder / "file"

    def torch_save() -> None:
        torch.save(state, file)
        synced(file)

    def safetensors_save() -> None:
        save_file(state, file)
        synced(file)

    cases: dict[str, tuple[Path, Callable[[], object]]] = {
        "raw O_DIRECT + fsync": (file, lambda: raw_write(file, size, block, direct=True)),
        "raw page cache + fsync": (file, lambda: raw_write(file, size, block, direct=False)),
        "ckptrun": (
            folder / "ours",
            lambda: dcp.save(state, storage_writer=ShardWriter(folder / "ours"), no_dist=True),
        ),
        "DCP FileSystemWriter": (
            folder / "dcp",
            lambda: dcp.save(state, storage_writer=FileSystemWriter(folder / "dcp"), no_dist=True),
        ),
        "torch.save + fsync": (file, torch_save),
        "safetensors save_file + fsync": (file, safetensors_save),
    }
    for case, (path, run) in cases.items():
        fresh(path)
        with figures.measure(case):
            run()


def _load_round(state: State, target: State, folder: Path, figures: Figures) -> None:
    ours, dcps, file = folder / "ours", folder / "dcp", folder / "file"
    _warm(ours, dcps, file)
    shards = sorted(ours.glob("*.safetensors"))
    with figures.measure("raw preadv, 2 threads"):
        raw_read(shards, target)
    with figures.measure("ckptrun, checked"):
        dcp.load(target, storage_reader=ShardReader(ours), no_dist=True)
    _require_same(state, target)
    with figures.measure("DCP FileSystemReader"):
        dcp.load(target, storage_reader=FileSystemReader(dcps), no_dist=True)
    with figures.measure("safetensors load_file + copy"):
        # It maps the file; bytes are read when they are used.
        for name, tensor in load_file(file).items():
            target[name].copy_(tensor)


def _warm(*places: Path) -> None:
    for place in places:
        for file in place.iterdir() if place.is_dir() else [place]:
            with file.open("rb", buffering=0) as opened:
                while opened.read(BLOCK):
                    pass


def _require_same(state: State, target: State) -> None:
    different = [
        name for name in state if not torch.equal(state[name].view(torch.uint8), target[name].view(torch.uint8))
    ]
    if different:
        raise SystemExit(f"loaded wrong: {different[:3]}")


def small_states(folder: Path) -> None:
    """Save and load of thousands of small tensors, one process: what counts is what comes on top of planning."""
    state = thousands_small()
    target = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    saves, loads = Figures(), Figures()
    ours, dcps = folder / "ours", folder / "dcp"
    for _ in range(ROUNDS):
        with saves.measure("planning alone"):
            dcp.save(state, storage_writer=NoStorage(), no_dist=True)
        with loads.measure("planning alone"):
            dcp.load(target, storage_reader=NoStorage(), no_dist=True)
        NoStorage.metadata = None
        with saves.measure("ckptrun"):
            dcp.save(state, storage_writer=ShardWriter(fresh(ours)), no_dist=True)
        with loads.measure("ckptrun, checked"):
            dcp.load(target, storage_reader=ShardReader(ours), no_dist=True)
        _require_same(state, target)
        with saves.measure("DCP FileSystemWriter"):
            dcp.save(state, storage_writer=FileSystemWriter(fresh(dcps)), no_dist=True)
        with loads.measure("DCP FileSystemReader"):
            dcp.load(target, storage_reader=FileSystemReader(dcps), no_dist=True)
    for what, figures in (("Save", saves), ("Load", loads)):
        print(f"### {what}, {thousands_small.__doc__}\n\n| case | s | on top of planning, s |\n|---|---|---|")
        planning = statistics.median(figures.seconds["planning alone"])
        for case, seconds in figures.seconds.items():
            print(f"| {case} | {statistics.median(seconds):.2f} | {statistics.median(seconds) - planning:.2f} |")
        print()


def two_ranks(folder: Path) -> None:
    """Save and load of 1 GiB, sharded over 2 processes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch.distributed.checkpoint"])
    ranks = [context.Process(target=_rank, args=(rank, folder)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()


def _rank(rank: int, folder: Path) -> None:
    quiet()
    os.environ.update(RANK=str(rank), WORLD_SIZE="2")
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), 2), rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))

    def sharded(value: float) -> dict[str, Any]:
        return {
            f"w{index}": distribute_tensor(torch.full((2048, 4096), value), mesh, [Shard(0)]) for index in range(32)
        }

    state, target, size = sharded(1.5), sharded(0.0), 32 * 2048 * 4096 * 4
    block = mmap.mmap(-1, BLOCK)
    block[:] = os.urandom(BLOCK)
    saves, loads = Figures(), Figures()
    ours, dcps, file = folder / "ours", folder / "dcp", folder / f"file{rank}"

    def clear() -> None:
        fresh(file)
        if rank == 0:
            fresh(ours)
            fresh(dcps)
        dist.barrier()

    for _ in range(ROUNDS):
        clear()
        with saves.measure("raw O_DIRECT + fsync"):
            raw_write(file, size // 2, block, direct=True)
            dist.barrier()
        clear()
        with saves.measure("ckptrun"):
            dcp.save(state, storage_writer=ShardWriter(ours))
        with loads.measure("ckptrun, checked"):
            dcp.load(target, storage_reader=ShardReader(ours))
        clear()
        with saves.measure("DCP FileSystemWriter"):
            dcp.save(state, storage_writer=FileSystemWriter(dcps))
        with loads.measure("DCP FileSystemReader"):
            dcp.load(target, storage_reader=FileSystemReader(dcps))
    if rank == 0:
        print("### Save, 1 GiB on 2 ranks (CPU and memory of rank 0)\n")
        saves.table(size, "raw O_DIRECT + fsync")
        print("### Load right after the save, 1 GiB on 2 ranks\n")
        loads.table(size, "DCP FileSystemReader")
    clear()
    dist.destroy_process_group()


def verify_cold(folder: Path) -> None:
    """``ckptrun verify`` from a cold cache, beside merely reading the files."""
    from ckptrun.__main__ import main

    state = few_large()
    size = sum(tensor.nbytes for tensor in state.values())
    ours = fresh(folder / "ours")
    dcp.save(state, storage_writer=ShardWriter(ours), no_dist=True)
    figures = Figures()
    for _ in range(ROUNDS):
        _chill(ours)
        with figures.measure("reading alone"):
            _warm(ours)
        _chill(ours)
        with figures.measure("ckptrun verify"), contextlib.redirect_stdout(io.StringIO()):
            sys.argv = ["ckptrun", "verify", str(ours)]
            if main() != 0:
                raise SystemExit("verify found damage")
    print("### Verify 1 GiB from a cold cache\n")
    figures.table(size, "reading alone")
    fresh(ours)


def _chill(folder: Path) -> None:
    for file in folder.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def quiet() -> None:
    """One thread, as each rank of a run has; no remarks of DCP about saves without a process group."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")


def main() -> None:
    quiet()
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else ".") as name:
        folder = Path(name)
        large_states(few_large, folder)
        large_states(one_thousand, folder)
        small_states(folder)
        two_ranks(folder)
        verify_cold(folder)


if __name__ == "__main__":
    main()
