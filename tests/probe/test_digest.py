"""The probe's fingerprint: one bit that differs shows, and how a tensor lies in memory does not."""

import sys

import numpy
import pytest
import torch

from ckptrun.probe import site_folder

sys.path.insert(0, str(site_folder()))

from _ckptrun_probe import digest as probe_digest
from _ckptrun_probe.digest import digest_of, digests_of
from _ckptrun_probe.streams import stream_digests

DTYPES = [
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.uint8,
    torch.bool,
    torch.complex64,
    torch.float8_e4m3fn,
]


def filled(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    count = int(numpy.prod(shape)) * dtype.itemsize
    raw = torch.randint(0, 256, (count,), dtype=torch.uint8, generator=generator)
    return (raw % 2).bool().reshape(shape) if dtype is torch.bool else raw.view(dtype).reshape(shape)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1,), (3, 5), (257, 129)], ids=str)
def test_one_bit_shows(dtype, shape):
    tensor = filled(dtype, *shape)
    before = digest_of(tensor)
    raw = tensor.reshape(-1).view(torch.uint8)
    for place in {0, len(raw) // 2, len(raw) - 1}:
        bits = [0] if dtype is torch.bool else [0, 6, 7]
        for bit in bits:
            raw[place] ^= 1 << bit
            assert digest_of(tensor) != before, (place, bit)
            raw[place] ^= 1 << bit
    assert digest_of(tensor) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_signs_of_zeros_show_wherever_they_are(dtype):
    zeros = torch.zeros(64, dtype=dtype)
    seen = {digest_of(zeros)}
    pairs = [(i, j) for i in range(0, 64, 7) for j in range(i + 1, 64, 5)]
    for pair in pairs:
        changed = zeros.clone()
        changed[list(pair)] = -0.0
        seen.add(digest_of(changed))
    assert len(seen) == len(pairs) + 1


def test_order_shows():
    tensor = torch.arange(70000, dtype=torch.float32)
    assert digest_of(tensor) != digest_of(tensor.flip(0))
    swapped = tensor.clone()
    swapped[[3, 66000]] = swapped[[66000, 3]]
    assert digest_of(tensor) != digest_of(swapped)


def test_dtype_and_shape_show():
    tensor = torch.zeros(4, 6)
    assert len({digest_of(t) for t in (tensor, tensor.view(6, 4), tensor.view(torch.int32), torch.zeros(24))}) == 4


def test_how_it_lies_in_memory_does_not():
    tensor = filled(torch.float32, 40, 30)
    twisted = torch.empty(30, 40).T.copy_(tensor)
    shifted = torch.cat([torch.zeros(1), tensor.reshape(-1)])[1:].view(40, 30)
    assert digest_of(twisted) == digest_of(shifted) == digest_of(tensor)


@pytest.mark.parametrize("words", [1, 32768, 32769, 100_003])
def test_numpy_and_torch_come_to_the_same(words, monkeypatch):
    raw = filled(torch.uint8, words * 8 + 3)
    with_numpy = digest_of(raw)
    monkeypatch.setattr(probe_digest, "_array", lambda words: None)
    assert digest_of(raw) == with_numpy


def test_without_numpy_it_is_looked_for_once(monkeypatch):
    looked = []

    class Finder:
        def find_spec(self, name, path, target=None):
            if name == "numpy":
                looked.append(name)
                raise ModuleNotFoundError(name)

    tensor = filled(torch.float32, 5, 3)
    with_numpy = digest_of(tensor)
    probe_digest._numpy.cache_clear()
    monkeypatch.delitem(sys.modules, "numpy")
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    assert [digest_of(tensor), digest_of(tensor)] == [with_numpy] * 2
    assert looked == ["numpy"]
    probe_digest._numpy.cache_clear()


def test_a_process_that_may_fork_is_not_asked_for_devices(monkeypatch):
    def asked():
        raise AssertionError("a forked process could not use CUDA any more")

    monkeypatch.setattr(torch.cuda, "is_available", asked)
    monkeypatch.setattr(torch.cuda, "device_count", asked)
    monkeypatch.setattr(torch._C, "_cuda_getDeviceCount", asked, raising=False)
    assert "torch" in stream_digests()


def test_many_at_once_are_those_of_each():
    tensors = [filled(torch.float32, 7), filled(torch.int64, 3, 3), torch.zeros(0), torch.tensor(1.5)]
    assert digests_of(tensors) == "".join(digest_of(tensor) for tensor in tensors)


def test_sparse_and_negated_views_have_one():
    values = torch.tensor([[0.0, 2.0], [3.0, 0.0]])
    assert digest_of(values.to_sparse()) == digest_of(values)
    lazy = torch.complex(values, values).conj()
    assert digest_of(lazy) == digest_of(lazy.resolve_conj())
