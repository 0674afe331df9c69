"""How each dtype lies in a shard file: under its own safetensors name, or as bits.

A dtype is native when both ``safetensors.safe_open`` and torch's ``HuggingFaceStorageReader`` know its name. Any other
is stored as ``U8`` with one more dim at the end, as long as one element has bytes: so that a tool that does not know
the true dtype sees another shape, and fails instead of converting numbers. The true dtype is in the manifest.

Dtypes are named as torch names them, without ``torch.``. Must not import torch: a launcher reads manifests without it.
"""

__all__ = ["is_known", "item_bytes", "stored_as"]

_NATIVE = {
    "float64": ("F64", 8),
    "float32": ("F32", 4),
    "float16": ("F16", 2),
    "bfloat16": ("BF16", 2),
    "complex64": ("C64", 8),
    "int64": ("I64", 8),
    "int32": ("I32", 4),
    "int16": ("I16", 2),
    "int8": ("I8", 1),
    "uint64": ("U64", 8),
    "uint32": ("U32", 4),
    "uint16": ("U16", 2),
    "uint8": ("U8", 1),
    "bool": ("BOOL", 1),
    "float8_e4m3fn": ("F8_E4M3", 1),
    "float8_e4m3fnuz": ("F8_E4M3FNUZ", 1),
    "float8_e5m2": ("F8_E5M2", 1),
    "float8_e5m2fnuz": ("F8_E5M2FNUZ", 1),
}

_AS_BITS = {
    "complex128": 16,
    "complex32": 4,
    # safe_open knows this one as F8_E8M0, but torch's reader fails on every leaf of a folder that has it.
    "float8_e8m0fnu": 1,
    # safetensors counts the two halves of an element as two.
    "float4_e2m1fn_x2": 1,
}


def is_known(dtype: str) -> bool:
    """Whether format 1 can hold tensors of this dtype."""
    return dtype in _NATIVE or dtype in _AS_BITS


def item_bytes(dtype: str) -> int:
    """Return how many bytes one element has. ``dtype`` must be known."""
    return _NATIVE[dtype][1] if dtype in _NATIVE else _AS_BITS[dtype]


def stored_as(dtype: str, sizes: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    """Return the safetensors dtype and shape under which a chunk of these sizes lies in its file."""
    if dtype in _NATIVE:
        return _NATIVE[dtype][0], sizes
    return "U8", (*sizes, _AS_BITS[dtype])
