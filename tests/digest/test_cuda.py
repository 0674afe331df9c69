import pytest
import torch

from ckptrun.digest import digest, digest_leaves, tally
from ckptrun.digest.sums import chunk_sums
from tests.digest.samples import DTYPES, IGNORE_COMPLEX_HALF, random_bits, raw

pytestmark = [pytest.mark.gpu, IGNORE_COMPLEX_HALF]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_tensor_has_the_same_digest_on_the_gpu(dtype):
    for shape in [(1,), (7, 5), (300, 1031), (3, 70000), (40, 3), (2, 3, 5, 700)]:
        tensor = random_bits(*shape, dtype=dtype)
        on_gpu = tensor.cuda()
        assert digest(on_gpu) == digest(tensor), shape
        assert torch.equal(raw(on_gpu.cpu()), raw(tensor))


@pytest.mark.parametrize("view", [lambda t: t.t(), lambda t: t[::2, 1::3], lambda t: t[:, :1].expand(400, 9)])
def test_strided_tensors_have_the_same_digest_on_the_gpu(view):
    for dtype in (torch.float32, torch.bfloat16, torch.int64):
        tensor = random_bits(400, 700, dtype=dtype)
        assert digest(view(tensor.cuda())) == digest(view(tensor))


def test_the_size_of_blocks_does_not_count_on_the_gpu(monkeypatch):
    tensor = random_bits(3000, 5000, dtype=torch.bfloat16)
    expected = digest(tensor)
    assert digest(tensor.cuda()) == expected
    monkeypatch.setattr(tally, "_OTHER_WORDS", (1 << 18, 1 << 16))
    assert digest(tensor.cuda()) == expected


def test_leaves_of_several_devices_are_digested_together():
    tensors = {f"{place:02d}": random_bits(place + 1, 300, dtype=torch.float32) for place in range(20)}
    mixed = {name: tensor.cuda() if int(name) % 2 else tensor for name, tensor in tensors.items()}
    assert digest_leaves(mixed) == digest_leaves(tensors)


def test_chunks_on_the_gpu_have_the_sums_of_those_on_the_cpu():
    chunk = random_bits(20, 30, 400, dtype=torch.float16)
    place = {"offsets": (3, 5, 7), "shape": (50, 60, 1000)}
    assert chunk_sums(chunk.cuda(), **place) == chunk_sums(chunk, **place)


def test_deterministic_algorithms_do_not_count(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    tensor = random_bits(300, 1031, dtype=torch.float32)
    torch.use_deterministic_algorithms(True)
    try:
        assert digest(tensor.cuda()) == digest(tensor)
    finally:
        torch.use_deterministic_algorithms(False)
