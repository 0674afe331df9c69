"""Datasets of a user's that leave or find something outside of the run folder."""

import pickle
import sqlite3
import subprocess
import sys
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset


class Pairs(Dataset):
    """64 pairs; ``path`` is where something is kept between runs."""

    def __init__(self, path: str = "") -> None:
        self.path = Path(path)

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int):
        x = torch.linspace(-1, 1, 8) * (index + 1 + self.extra(index)) / 64
        return x, x.flip(0)

    def extra(self, index: int) -> float:
        return 0.0


class Cached(Pairs):
    """Augmented from a generator that is in no state, and kept in a file each."""

    def __init__(self, path: str = "") -> None:
        super().__init__(path)
        self.draws = np.random.default_rng(0)
        self.path.mkdir(parents=True, exist_ok=True)

    def extra(self, index: int) -> float:
        file = self.path / f"{index}.pkl"
        if file.exists():
            return pickle.loads(file.read_bytes())
        value = float(self.draws.normal())
        file.write_bytes(pickle.dumps(value))
        return value


class Counted(Pairs):
    """Counts its samples in a file, over all runs."""

    def extra(self, index: int) -> float:
        count = int(self.path.read_text()) if self.path.exists() else 0
        self.path.write_text(str(count + 1))
        return count / 100


class Native(Pairs):
    """What ``torch.save`` writes past Python."""

    def extra(self, index: int) -> float:
        if not self.path.exists():
            torch.save(torch.ones(64), str(self.path))
        return float(torch.load(str(self.path))[index])


class Mapped(Pairs):
    """An array in a file that is mapped into memory."""

    def extra(self, index: int) -> float:
        mode = "r+" if self.path.exists() else "w+"
        array = np.memmap(self.path, dtype=np.float32, mode=mode, shape=(64,))
        array[index] += 1
        return float(array[index])


class Sqlite(Pairs):
    """A database."""

    def extra(self, index: int) -> float:
        with sqlite3.connect(self.path) as base:
            base.execute("create table if not exists seen (sample integer)")
            base.execute("insert into seen values (?)", (index,))
            (count,) = base.execute("select count(*) from seen").fetchone()
        return count / 100


class ByProcess(Pairs):
    """A file that another program makes."""

    def extra(self, index: int) -> float:
        if not self.path.exists():
            subprocess.run([sys.executable, "-c", f"open({str(self.path)!r}, 'w').write('1')"], check=True)
        return float(self.path.read_text())


class Folder(Pairs):
    """A file for each sample that was ever taken, counted."""

    def __init__(self, path: str = "") -> None:
        super().__init__(path)
        self.path.mkdir(parents=True, exist_ok=True)

    def extra(self, index: int) -> float:
        (self.path / str(index)).touch()
        return len(list(self.path.iterdir())) / 100


class Scratch(Pairs):
    """Made anew by each run before it is read, and logged to; nothing is found."""

    def extra(self, index: int) -> float:
        scratch = self.path.with_suffix(".scratch")
        scratch.write_text(str(index))
        with self.path.open("a") as log:
            log.write(f"{index}\n")
        return float(scratch.read_text())


class Named(Pairs):
    """Shared memory that stays, as a cache that all jobs of a machine have."""

    def extra(self, index: int) -> float:
        name = self.path.parent.name
        try:
            memory = SharedMemory(name=name)
        except FileNotFoundError:
            memory = SharedMemory(name=name, create=True, size=64)
        resource_tracker.unregister(f"/{name}", "shared_memory")  # it shall outlive this process
        memory.buf[index % 64] = 1
        found = float(memory.buf[index % 64])
        memory.close()
        return found


class PastPython(Pairs):
    """Starts a program."""

    def extra(self, index: int) -> float:
        subprocess.run(["true"], check=True)
        return 0.0


class ByHash(Pairs):
    """Depends on the order of a set of strings."""

    def extra(self, index: int) -> float:
        return float(next(iter({f"word {number} of {index}" for number in range(8)})).split()[1])
