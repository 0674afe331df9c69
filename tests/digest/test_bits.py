import contextlib
import math

import pytest
import torch

from ckptrun.digest import digest, digest_leaves, multipliers
from ckptrun.digest.sums import chunk_sums
from ckptrun.errors import UnsupportedLeafError
from tests.digest.samples import DTYPES, IGNORE_COMPLEX_HALF, random_bits, raw

pytestmark = IGNORE_COMPLEX_HALF


def _digests(tensors):
    return list(digest_leaves({f"{place:09d}": tensor for place, tensor in enumerate(tensors)}).values())


def _flip(tensor, bit):
    flipped = tensor.clone()
    raw(flipped)[bit // 8] ^= 1 << bit % 8
    return flipped


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_single_bit_counts(dtype):
    tensor = random_bits(3, 5, dtype=dtype)
    bits = range(0, raw(tensor).numel() * 8, 8 if dtype == torch.bool else 1)
    digests = _digests([tensor, *(_flip(tensor, bit) for bit in bits)])
    assert len(set(digests)) == 1 + len(bits)


@pytest.mark.parametrize("shape", [(3, 300), (2, 1, 1030), (1500,), (2, 513, 2)], ids=str)
def test_every_bit_of_a_word_counts_anywhere_in_rows_and_lines(shape):
    tensor = random_bits(*shape, dtype=torch.float32)
    digests = _digests([tensor, *(_flip(tensor, 32 * word + word % 32) for word in range(tensor.numel()))])
    assert len(set(digests)) == 1 + tensor.numel()


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d.itemsize <= 4], ids=str)
def test_any_change_of_one_narrow_element_changes_both_sums(dtype):
    tensor = random_bits(4, 300, dtype=dtype)
    before = chunk_sums(tensor, offsets=(0, 0), shape=tensor.shape)
    values = random_bits(60, dtype=dtype, seed=1)
    generator = torch.Generator().manual_seed(2)
    for place, value in zip(torch.randint(0, 1200, (60,), generator=generator).tolist(), values, strict=True):
        size = tensor.element_size()
        changed = tensor.clone()
        raw(changed)[place * size : (place + 1) * size] = raw(value.reshape(1))
        if torch.equal(raw(changed), raw(tensor)):
            continue
        after = chunk_sums(changed, offsets=(0, 0), shape=tensor.shape)
        assert after.first != before.first
        assert after.second != before.second


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.complex64], ids=str)
def test_flipping_two_sign_bits_is_seen(dtype):
    """With 64-bit words and odd multipliers it would not be: the two differences of 2^63 cancel."""
    tensor = random_bits(2, 8, dtype=dtype)
    changed = _flip(_flip(tensor, 63), 64 * 9 + 63)
    before = chunk_sums(tensor, offsets=(0, 0), shape=tensor.shape)
    after = chunk_sums(changed, offsets=(0, 0), shape=tensor.shape)
    assert after.first != before.first
    assert after.second != before.second


def test_swapping_any_two_rows_changes_the_digest():
    tensor = random_bits(40, 257, dtype=torch.float32)
    swaps = [(a, b) for a in range(40) for b in range(a)]
    swapped = [tensor[[{a: b, b: a}.get(row, row) for row in range(40)]] for a, b in swaps]
    assert len(set(_digests([tensor, *swapped]))) == 1 + len(swaps)


def test_swapping_any_two_columns_changes_the_digest():
    tensor = random_bits(3, 40, dtype=torch.bfloat16)
    swaps = [(a, b) for a in range(40) for b in range(a)]
    swapped = [tensor[:, [{a: b, b: a}.get(column, column) for column in range(40)]] for a, b in swaps]
    assert len(set(_digests([tensor, *swapped]))) == 1 + len(swaps)


def test_swapping_whole_lines_and_pages_of_rows_changes_the_digest():
    tensor = random_bits(3, 256 * 3, dtype=torch.int32)
    lines = tensor.view(3, 3, 256)
    tall = random_bits(8192, 256, dtype=torch.int32)
    assert digest(lines[:, [1, 0, 2]].reshape(3, 768)) != digest(tensor)
    assert digest(torch.cat([tall[4096:], tall[:4096]])) != digest(tall)


def test_transposing_and_reversing_change_the_digest():
    square = random_bits(300, 300, dtype=torch.float32)
    assert len(set(_digests([square, square.t(), square.flip(0), square.flip(1)]))) == 4


def test_dtype_counts():
    for size in (1, 2, 4, 8):
        same_bits = [
            torch.zeros(16 // size, dtype=torch.uint8).repeat(size).view(dtype)
            for dtype in DTYPES
            if dtype.itemsize == size
        ]
        assert len({tuple(tensor.shape) for tensor in same_bits}) == 1
        assert len(set(_digests(same_bits))) == len(same_bits)


def test_shape_counts():
    values = torch.arange(24.0)
    shapes = [(24,), (1, 24), (24, 1), (2, 12), (12, 2), (4, 6), (2, 3, 4), (1, 24, 1), (1, 1, 24)]
    assert len(set(_digests([values.view(shape) for shape in shapes]))) == len(shapes)


def test_shapes_without_elements_differ():
    shapes = [(0,), (0, 3), (3, 0), (0, 0), (2, 0, 3)]
    assert len(set(_digests([torch.empty(shape) for shape in shapes]))) == len(shapes)


def test_zeros_of_another_length_differ():
    assert len(set(_digests([torch.zeros(length) for length in range(300)]))) == 300


def test_negative_zero_is_not_zero():
    assert digest(torch.tensor([0.0])) != digest(torch.tensor([-0.0]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_nans_with_other_payloads_differ(dtype):
    nan = torch.tensor([math.nan], dtype=dtype)
    payload, negative = _flip(nan, 0), _flip(nan, 8 * nan.element_size() - 1)
    assert payload.isnan()
    assert negative.isnan()
    assert len({digest(nan), digest(payload), digest(negative)}) == 3


def test_a_nan_does_not_hide_other_changes():
    tensor = torch.tensor([math.nan, math.inf, 1.0])
    assert digest(tensor) != digest(torch.tensor([math.nan, math.inf, 2.0]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides_do_not_count(dtype):
    dense = random_bits(20, 12, 30, dtype=dtype)
    wide = random_bits(41, 26, 62, dtype=dtype, seed=1)
    wide[1::2, 2::2, 1:61:2].copy_(dense)
    views = {
        "every other element": wide[1::2, 2::2, 1:61:2],
        "transposed": dense.permute(2, 0, 1).contiguous().permute(1, 2, 0),
        "column-major": dense.permute(2, 1, 0).contiguous().permute(2, 1, 0),
        "at an odd place in memory": torch.cat([dense.view(-1)[:1], dense.view(-1)])[1:].view(dense.shape),
    }
    for name, view in views.items():
        assert torch.equal(raw(view.contiguous()), raw(dense)), name
        assert digest(view) == digest(dense), name


def test_expanded_tensors_have_the_digest_of_what_they_show():
    column, row = random_bits(300, 1, dtype=torch.float32), random_bits(1, 300, dtype=torch.float32)
    for view in (column.expand(300, 300), row.expand(300, 300), torch.tensor(2.5).expand(4, 5, 6)):
        assert digest(view) == digest(view.contiguous())


def test_conjugated_and_negated_views_have_the_digest_of_what_they_show():
    for dtype in (torch.complex64, torch.complex128):
        tensor = random_bits(5, 7, dtype=dtype)
        assert tensor.conj().is_conj()
        assert digest(tensor.conj()) == digest(tensor.conj().resolve_conj().clone())
        negated = tensor.conj().imag
        assert negated.is_neg()
        assert digest(negated) == digest(negated.resolve_neg().clone())


def test_parameters_and_tensors_with_history_have_the_digest_of_their_values():
    values = torch.arange(6.0)
    parameter = torch.nn.Parameter(values.clone())
    assert digest(parameter) == digest(values)
    assert digest(parameter * 1) == digest(values)


def test_a_subclass_without_a_mesh_is_a_plain_tensor():
    class Named(torch.Tensor):
        @classmethod
        def __torch_function__(cls, *args, **kwargs):
            raise AssertionError("the digest must not run a subclass's code")

    values = torch.arange(6.0)
    assert digest(values.as_subclass(Named)) == digest(values)


def test_nothing_is_changed_by_a_digest():
    tensor = random_bits(50, 301, dtype=torch.float32).requires_grad_()
    before, version, state = tensor.detach().clone(), tensor._version, torch.get_rng_state()
    digest(tensor)
    digest(tensor.t())
    assert torch.equal(raw(tensor.detach()), raw(before))
    assert (tensor._version, tensor.grad, tensor.requires_grad) == (version, None, True)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()


@contextlib.contextmanager
def _deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    "mode",
    [
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        lambda: torch.device("meta"),
        _deterministic,
    ],
    ids=["no_grad", "inference_mode", "autocast", "default_device", "deterministic"],
)
def test_modes_around_the_call_do_not_count(mode):
    tensor = random_bits(70, 301, dtype=torch.float32)
    expected = digest(tensor)
    with mode():
        assert digest(tensor) == expected
    assert digest(tensor) == expected


def test_what_was_first_computed_in_inference_mode_serves_outside():
    tensor = random_bits(70, 301, dtype=torch.float32)
    expected = digest(tensor)
    for table in (multipliers.place_weights, multipliers.combine, multipliers._page):
        table.cache_clear()
    with torch.inference_mode():
        assert digest(tensor) == expected
    assert digest(tensor) == expected


def test_default_dtype_does_not_count():
    tensor = random_bits(70, 301, dtype=torch.float32)
    expected = digest(tensor)
    torch.set_default_dtype(torch.float64)
    try:
        assert digest(tensor) == expected
    finally:
        torch.set_default_dtype(torch.float32)


class _Wrapper(torch.Tensor):
    @classmethod
    def __torch_dispatch__(cls, *args, **kwargs):
        raise NotImplementedError


def test_tensors_that_do_not_hold_their_values_are_refused_by_name():
    lazy = torch.nn.parameter.UninitializedParameter()
    wrapper = torch.Tensor._make_wrapper_subclass(_Wrapper, (4,))
    for value in (torch.empty(3, device="meta"), torch.eye(3).to_sparse(), lazy, wrapper):
        with pytest.raises(UnsupportedLeafError, match=r"Leaf 'model\.weight' is a "):
            digest_leaves({"model.weight": value})


def test_objects_that_are_no_plain_values_are_refused_by_name():
    with pytest.raises(UnsupportedLeafError, match=r"Leaf 'progress\.x' is a builtins\.object"):
        digest_leaves({"progress.x": object()})


def test_plain_values_differ_by_type_and_content():
    values = [None, 0, 0.0, -0.0, False, "", "0", b"", [], (), {}, [0], (0,), {"a": 0}, math.nan, math.inf, 1e300]
    digests = digest_leaves({str(place): value for place, value in enumerate(values)})
    assert len(set(digests.values())) == len(values)
    assert digest(7) == digest(3 + 4)


def test_many_leaves_have_the_digests_of_each():
    leaves = {f"{dtype} {n}": random_bits(n + 1, 37 * n + 1, dtype=dtype) for dtype in DTYPES for n in (0, 1, 5, 40)}
    leaves.update({"step": 3, "big": random_bits(300, 3000, dtype=torch.float32), "none": torch.empty(0)})
    assert digest_leaves(leaves) == {name: digest(value) for name, value in leaves.items()}
