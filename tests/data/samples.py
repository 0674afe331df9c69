"""Datasets of a user, as tests need them."""

import random

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info


class Numbers(Dataset):
    """Sample i is (i, -i); says nothing about itself."""

    def __init__(self, length=10):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return torch.tensor(index), torch.tensor(-index)


class Augmented(Numbers):
    """Draws from all three global generators."""

    def __getitem__(self, index):
        return torch.tensor(index), torch.tensor([random.random(), np.random.rand(), float(torch.rand(()))])


class Counting(Numbers):
    """Map-style with a state: how often it was asked."""

    def __init__(self, length=10):
        super().__init__(length)
        self.asked = 0

    def __getitem__(self, index):
        self.asked += 1
        return torch.tensor(index), torch.tensor(self.asked)

    def state_dict(self):
        return {"asked": self.asked}

    def load_state_dict(self, state):
        self.asked = state["asked"]


def part(numbers, rank, world_size):
    """The numbers of this rank and worker."""
    worker = get_worker_info()
    workers, index = (worker.num_workers, worker.id) if worker else (1, 0)
    return numbers[rank * workers + index :: world_size * workers]


class StatefulDatasetNumbers(IterableDataset):
    """Keeps its place in the dataset; adds a random number and goes through its part in an order drawn per epoch."""

    def __init__(self, length=23, rank=0, world_size=1):
        self.length, self.rank, self.world_size = length, rank, world_size
        self.epoch, self.place, self.seen = 0, 0, []

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        mine = part(list(range(self.length)), self.rank, self.world_size)
        random.Random(self.epoch).shuffle(mine)
        while self.place < len(mine):
            value = mine[self.place]
            self.place += 1
            self.seen.append(value)
            yield torch.tensor(value), torch.rand(())
        self.place = 0

    def state_dict(self):
        # The live list on purpose: users do that.
        return {"place": self.place, "seen": self.seen, "tensor": torch.tensor([self.place]), "array": np.arange(2)}

    def load_state_dict(self, state):
        assert isinstance(state["tensor"], torch.Tensor)
        assert isinstance(state["array"], np.ndarray)
        self.place, self.seen = state["place"], state["seen"]


class _Iterator:
    def __init__(self, numbers):
        self.numbers, self.place = numbers, 0

    def __iter__(self):
        return self

    def __next__(self):
        if self.place == len(self.numbers):
            raise StopIteration
        self.place += 1
        return torch.tensor(self.numbers[self.place - 1]), torch.rand(())

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state):
        self.place = state["place"]


class StatefulIteratorNumbers(IterableDataset):
    """Keeps its place in the iterator, and draws its order in __iter__."""

    def __init__(self, length=23, rank=0, world_size=1):
        self.length, self.rank, self.world_size = length, rank, world_size

    def __iter__(self):
        mine = part(list(range(self.length)), self.rank, self.world_size)
        random.shuffle(mine)
        return _Iterator(mine)


class ForgetfulNumbers(IterableDataset):
    """Has no state at all."""

    def __init__(self, length=23, rank=0, world_size=1):
        self.length, self.rank, self.world_size = length, rank, world_size

    def __iter__(self):
        for value in part(list(range(self.length)), self.rank, self.world_size):
            yield torch.tensor(value), torch.rand(())
