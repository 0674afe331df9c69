"""Plain values as JSON and back, without losing a bit or a type.

A plain value is ``None``, a bool, int, float, str, bytes, BytesIO, or a list, tuple or dict of plain values (dict keys:
str or int). What JSON cannot say is tagged: an object with one key that starts with ``$``.

=============  =================================================
value          JSON
=============  =================================================
bytes          ``{"$bytes": "<base64>"}``
BytesIO        ``{"$bytesio": ["<base64>", position]}``
float          a number; ``{"$float": "inf|-inf"}``, ``{"$nan": "<16 hex digits of its bits>"}``
tuple          ``{"$tuple": [...]}``
dict           an object; ``{"$dict": [[key, value]...]}`` when a key is an int or starts with ``$``
=============  =================================================

Must not know torch, files or ranks.
"""

import base64
import binascii
import io
import json
import math
import struct
from typing import Any

from ckptrun.errors import ManifestError, UnsupportedLeafError

__all__ = ["canonical_bytes", "decode", "encode"]

_MAX_DEPTH = 64


def encode(value: Any, *, name: str, depth: int = 0) -> Any:
    """Turn the plain value of leaf ``name`` into what ``json.dumps`` takes.

    Raises:
        UnsupportedLeafError: ``value`` holds something that is not a plain value; the message names leaf and type.
    """
    if depth > _MAX_DEPTH:
        raise UnsupportedLeafError(f"Leaf '{name}' is nested more than {_MAX_DEPTH} levels deep.")
    # Exact types: a subclass (numpy.float64 is a float, an enum may be an int) would come back as its base.
    kind = type(value)
    if value is None or kind in (bool, int, str):
        return value
    if kind is float:
        return value if math.isfinite(value) else _encode_not_finite(value)
    if kind is bytes:
        return {"$bytes": base64.b64encode(value).decode("ascii")}
    if kind is io.BytesIO:
        return {"$bytesio": [base64.b64encode(value.getvalue()).decode("ascii"), value.tell()]}
    if kind is list:
        return [encode(item, name=name, depth=depth + 1) for item in value]
    if kind is tuple:
        return {"$tuple": [encode(item, name=name, depth=depth + 1) for item in value]}
    if isinstance(value, dict):
        return _encode_dict(value, name=name, depth=depth)
    raise UnsupportedLeafError(
        f"Leaf '{name}' is a {kind.__module__}.{kind.__qualname__}, which is neither a tensor nor a plain value "
        "(None, bool, int, float, str, bytes, BytesIO, list, tuple, dict) and could only be stored with pickle. "
        "Return a tensor or a plain value from state_dict()."
    )


def _encode_not_finite(value: float) -> dict[str, str]:
    return {"$nan": struct.pack(">d", value).hex()} if math.isnan(value) else {"$float": repr(value)}


def _encode_dict(value: dict[Any, Any], *, name: str, depth: int) -> Any:
    for key in value:
        if type(key) not in (str, int):
            raise UnsupportedLeafError(
                f"Leaf '{name}' has a dict key {key!r} of type {type(key).__qualname__}; use str or int keys."
            )
    items = [(key, encode(item, name=name, depth=depth + 1)) for key, item in value.items()]
    if all(isinstance(key, str) and not key.startswith("$") for key, _ in items):
        return dict(items)
    return {"$dict": [[key, item] for key, item in items]}


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
    match tag:
        case "$float":
            return float(body)
        case "$nan":
            return float(struct.unpack(">d", bytes.fromhex(body))[0])
        case "$bytes":
            return base64.b64decode(body, validate=True)
        case "$bytesio":
            return _stream(*body)
        case "$tuple":
            return tuple(decode(item, name=name, depth=depth) for item in body)
        case "$dict":
            return {key: decode(item, name=name, depth=depth) for key, item in body}
        case _:
            raise ManifestError(f"Value of leaf '{name}' has the unknown tag {tag!r}.")


def _stream(content: str, position: int) -> io.BytesIO:
    stream = io.BytesIO(base64.b64decode(content, validate=True))
    stream.seek(position)
    return stream


def canonical_bytes(value: Any, *, name: str) -> bytes:
    """Return bytes that are equal only if two plain values are equal in type and content.

    Floats are written by their bits (so -0.0 differs from 0.0), ints, floats and bools never coincide. Dict order
    counts: it may decide what is computed next.
    """
    return json.dumps(_spell(encode(value, name=name)), separators=(",", ":")).encode()


def _spell(encoded: Any) -> Any:
    if type(encoded) is float:
        return {"$hex": encoded.hex()}
    if isinstance(encoded, list):
        return [_spell(item) for item in encoded]
    if isinstance(encoded, dict):
        return {key: _spell(item) for key, item in encoded.items()}
    return encoded
