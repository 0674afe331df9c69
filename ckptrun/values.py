"""Plain values as JSON and back, without losing a bit or a type.

A plain value is ``None``, a bool, int, float, str, bytes, BytesIO, or a list, tuple, dict, OrderedDict, Counter or
defaultdict of plain values; a small tensor in a tuple, which cannot be taken apart into leaves, is one too, as an
:class:`EmbeddedTensor`. What JSON cannot say is tagged: an object with one key that starts with ``$``.

=============  =================================================
value          JSON
=============  =================================================
int            a number of up to 4300 digits; larger ones are refused
bytes          ``{"$bytes": "<base64>"}``
BytesIO        ``{"$bytesio": ["<base64>", position]}``
float          a number; ``{"$float": "inf|-inf"}``, ``{"$nan": "<16 hex digits of its bits>"}``
tuple          ``{"$tuple": [...]}``
dict           an object; ``{"$dict": [[key, value]...]}`` when a key is no text or starts with ``$``
OrderedDict    ``{"$ordereddict": [[key, value]...]}``
Counter        ``{"$counter": [[key, value]...]}``
defaultdict    ``{"$defaultdict": ["<name of the factory, empty for None>", [[key, value]...]]}``
tensor         ``{"$tensor": ["<dtype>", [sizes], "<base64>"]}``
=============  =================================================

Must not know torch, files or ranks.
"""

import base64
import binascii
import io
import json
import math
import struct
import sys
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ckptrun.errors import ManifestError, UnsupportedLeafError

__all__ = [
    "EmbeddedTensor",
    "Refused",
    "canonical_bytes",
    "decode",
    "dict_kind",
    "encode",
    "is_container_kind",
    "kind_name",
    "make_dict",
    "require_key",
    "same_value",
]

_MAX_DEPTH = 64
_MAX_DIGITS = 4300

# What a defaultdict may make its missing values with, by name.
_FACTORIES: Mapping[str, Callable[[], Any] | None] = {
    "": None,
    **{kind.__name__: kind for kind in (bool, int, float, str, bytes, list, tuple, dict, set, Counter, OrderedDict)},
}
_DICTS: Mapping[type, str] = {dict: "dict", OrderedDict: "ordereddict", Counter: "counter", defaultdict: "defaultdict"}


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedTensor:
    """A tensor inside of a plain value: its elements as bytes, little-endian and row-major."""

    dtype: str
    """As torch names it, without ``torch.``."""
    shape: tuple[int, ...]
    content: bytes


@dataclass(frozen=True, slots=True)
class Refused:
    """Stands where a leaf was that could not be copied. A save that comes upon it fails, on all ranks alike.

    To raise where one rank copies would leave the others waiting for it in the collectives of the save.
    """

    reason: str

    def build(self, memory: Any) -> "Refused":
        """As the notes of a staged copy have it."""
        return self

    def __create_write_items__(self, name: str, value: Any) -> Any:  # DCP's planners ask for it
        raise UnsupportedLeafError(self.reason)


def encode(value: Any, *, name: str, depth: int = 0) -> Any:
    """Turn the plain value of leaf ``name`` into what ``json.dumps`` takes.

    Raises:
        UnsupportedLeafError: ``value`` holds something that is not a plain value; the message names leaf and type.
    """
    if depth > _MAX_DEPTH:
        raise UnsupportedLeafError(f"Leaf '{name}' is nested more than {_MAX_DEPTH} levels deep.")
    # Exact types: a subclass (numpy.float64 is a float, an enum may be an int) would come back as its base.
    kind = type(value)
    if value is None or kind in (bool, str):
        return value
    if kind in _ENCODERS:
        return _ENCODERS[kind](value, name)
    if kind is list:
        return [encode(item, name=name, depth=depth + 1) for item in value]
    if kind is tuple:
        return {"$tuple": [encode(item, name=name, depth=depth + 1) for item in value]}
    if isinstance(value, dict):
        return _encode_dict(value, name=name, depth=depth)
    if kind is Refused:
        raise UnsupportedLeafError(value.reason)
    raise UnsupportedLeafError(
        f"Leaf '{name}' is a {kind_name(value)}, which is neither a tensor nor a plain value "
        "(None, bool, int, float, str, bytes, BytesIO, list, tuple, dict) and could only be stored with pickle. "
        "Return a tensor or a plain value from state_dict()."
    )


def kind_name(value: Any) -> str:
    """The full name of the class of ``value``, for messages."""
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _encode_int(value: int, name: str) -> int:
    # 0 stands for no limit; others than this process may read what is written.
    limit = min(sys.get_int_max_str_digits() or _MAX_DIGITS, _MAX_DIGITS)
    if value.bit_length() > 3 * limit and abs(value) >= 10**limit:
        raise UnsupportedLeafError(
            f"Leaf '{name}' is or holds an integer of more than {limit} digits ({value.bit_length()} bits), which "
            "cannot be written as a number. Save it as bytes: value.to_bytes(length, 'little', signed=True)."
        )
    return value


def _encode_float(value: float, _: str) -> float | dict[str, str]:
    if math.isfinite(value):
        return value
    return {"$nan": struct.pack(">d", value).hex()} if math.isnan(value) else {"$float": repr(value)}


def _encode_bytes(value: bytes, _: str) -> dict[str, str]:
    return {"$bytes": _base64(value)}


def _encode_stream(value: io.BytesIO, _: str) -> dict[str, list[Any]]:
    return {"$bytesio": [_base64(value.getvalue()), value.tell()]}


def _encode_tensor(value: EmbeddedTensor, _: str) -> dict[str, list[Any]]:
    return {"$tensor": [value.dtype, list(value.shape), _base64(value.content)]}


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


_ENCODERS: Mapping[type, Callable[[Any, str], Any]] = {
    int: _encode_int,
    float: _encode_float,
    bytes: _encode_bytes,
    io.BytesIO: _encode_stream,
    EmbeddedTensor: _encode_tensor,
}


def require_key(key: Any, *, name: str) -> None:
    """Check that ``key`` of a dict in leaf ``name`` comes back as what it is.

    Raises:
        UnsupportedLeafError: It is neither None, bool, int, float, str or bytes nor a tuple of these; names the leaf.
    """
    kind = type(key)
    if kind is tuple:
        for item in key:
            require_key(item, name=name)
    elif key is not None and kind not in (bool, int, float, str, bytes):
        raise UnsupportedLeafError(
            f"Leaf '{name}' has a dict key {key!r} of type {kind_name(key)}; "
            "use None, bool, int, float, str or bytes keys, or tuples of these."
        )


def _encode_dict(value: dict[Any, Any], *, name: str, depth: int) -> Any:
    kind, _, factory = dict_kind(value, name=name).partition(":")
    for key in value:
        require_key(key, name=name)
    pairs = [
        [encode(key, name=name, depth=depth + 1), encode(item, name=name, depth=depth + 1)]
        for key, item in value.items()
    ]
    if kind == "dict" and all(type(key) is str and not key.startswith("$") for key in value):
        return dict(pairs)
    return {f"${kind}": [factory, pairs] if kind == "defaultdict" else pairs}


def dict_kind(value: Any, *, name: str) -> str:
    """Return what :func:`make_dict` makes a dict like ``value`` of: ``dict``, ``counter``, ``defaultdict:int``, ...

    Raises:
        UnsupportedLeafError: It would come back as another kind of dict; names the leaf.
    """
    if type(value) not in _DICTS:
        raise UnsupportedLeafError(
            f"Leaf '{name}' is or holds a {kind_name(value)}, which would come back as a plain dict. "
            "Return {**value} from state_dict(), and make the other kind anew in load_state_dict()."
        )
    if not isinstance(value, defaultdict):
        return _DICTS[type(value)]
    for known, factory in _FACTORIES.items():
        if value.default_factory is factory:
            return f"defaultdict:{known}"
    raise UnsupportedLeafError(
        f"Leaf '{name}' is or holds a defaultdict that makes missing values with {value.default_factory!r}, which "
        f"cannot be stored without pickle; these can: {', '.join(filter(None, _FACTORIES))}. "
        "Return {**value} from state_dict(), a plain dict, and make the defaultdict anew in load_state_dict()."
    )


def is_container_kind(kind: str) -> bool:
    """Whether it is a kind of container: ``tuple``, or of a dict, see :func:`dict_kind`."""
    head, _, factory = kind.partition(":")
    return kind in ("tuple", *_DICTS.values()) or (head == "defaultdict" and factory in _FACTORIES)


def make_dict(kind: str, items: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """Return a dict of ``kind``, which is what :func:`dict_kind` returns, of (key, value) pairs in their order.

    Raises:
        ValueError: There is no such kind.
    """
    kind, _, factory = kind.partition(":")
    if kind == "defaultdict" and factory in _FACTORIES:
        return defaultdict(_FACTORIES[factory], items)
    if kind not in ("dict", "ordereddict", "counter"):
        raise ValueError(f"no dict is called {kind!r}")
    # Counter(items) would count the pairs.
    return Counter(dict(items)) if kind == "counter" else OrderedDict(items) if kind == "ordereddict" else dict(items)


def decode(encoded: Any, *, name: str, depth: int = 0) -> Any:
    """Undo :func:`encode`.

    Raises:
        ManifestError: ``encoded`` is nothing that :func:`encode` writes; the message names the leaf.
    """
    if depth > 2 * _MAX_DEPTH:
        raise ManifestError(f"Value of leaf '{name}' is nested more than {_MAX_DEPTH} levels deep.")
    if isinstance(encoded, list):
        return [decode(item, name=name, depth=depth + 1) for item in encoded]
    if not isinstance(encoded, dict):
        return encoded
    tag = next((key for key in encoded if key.startswith("$")), None)
    if tag is None:
        return {key: decode(item, name=name, depth=depth + 1) for key, item in encoded.items()}
    body = encoded[tag]
    try:
        return _decode_tagged(tag, body, name=name, depth=depth + 1)
    except (ValueError, TypeError, binascii.Error, struct.error) as error:
        raise ManifestError(f"Value of leaf '{name}' has a damaged {tag!r} entry: {error}.") from error


def _decode_tagged(tag: str, body: Any, *, name: str, depth: int) -> Any:
    if tag in _DECODERS:
        return _DECODERS[tag](body)
    if tag == "$tuple":
        return tuple(decode(item, name=name, depth=depth) for item in body)
    kind = tag[1:]
    if kind not in _DICTS.values():
        raise ManifestError(f"Value of leaf '{name}' has the unknown tag {tag!r}.")
    if kind == "defaultdict":
        factory, body = body
        kind = f"{kind}:{factory}"
    return make_dict(
        kind, [(decode(key, name=name, depth=depth), decode(item, name=name, depth=depth)) for key, item in body]
    )


def _decode_tensor(body: Any) -> EmbeddedTensor:
    dtype, shape, content = body
    if type(dtype) is not str or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"{dtype!r} and {shape!r} are no dtype and no shape")
    return EmbeddedTensor(dtype=dtype, shape=tuple(shape), content=base64.b64decode(content, validate=True))


def _decode_stream(body: Any) -> io.BytesIO:
    content, position = body
    stream = io.BytesIO(base64.b64decode(content, validate=True))
    stream.seek(position)
    return stream


_DECODERS: Mapping[str, Callable[[Any], Any]] = {
    "$float": float,
    "$nan": lambda body: float(struct.unpack(">d", bytes.fromhex(body))[0]),
    "$bytes": lambda body: base64.b64decode(body, validate=True),
    "$bytesio": _decode_stream,
    "$tensor": _decode_tensor,
}


def canonical_bytes(value: Any, *, name: str) -> bytes:
    """Return bytes that are equal only if two plain values are equal in type and content.

    Floats are written by their bits (so -0.0 differs from 0.0), ints, floats and bools never coincide. Dict order
    counts: it may decide what is computed next.
    """
    return json.dumps(_spell(encode(value, name=name)), separators=(",", ":")).encode()


def same_value(one: Any, other: Any, *, name: str) -> bool:
    """Whether two plain values are equal in type, and in the bits of their floats; ``name`` is that of the leaf.

    Raises:
        UnsupportedLeafError: One of them is no plain value.
    """
    return canonical_bytes(one, name=name) == canonical_bytes(other, name=name)


def _spell(encoded: Any) -> Any:
    if type(encoded) is float:
        return {"$hex": encoded.hex()}
    if isinstance(encoded, list):
        return [_spell(item) for item in encoded]
    if isinstance(encoded, dict):
        return {key: _spell(item) for key, item in encoded.items()}
    return encoded
