"""MessagePack with NumPy's arrays, as openpi's client and server speak it.

An array is a map with the keys ``b"__ndarray__"``, ``b"data"``, ``b"dtype"``, ``b"shape"``; a NumPy scalar one with
``b"__npgeneric__"``, ``b"data"``, ``b"dtype"``. Nothing that is read can run code: arrays are made of plain numbers and
texts alone.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

# What NumPy and Python make of bytes that are no message, besides msgpack's own error.
_UNREADABLE = (ValueError, TypeError, KeyError, RecursionError, OverflowError, SyntaxError, AttributeError)
# Kinds of dtypes that a message may hold: bool, integers, floats, texts.
_KINDS = "biufSU"


def packed(value: Any) -> bytes:
    """A message of dicts, lists, texts, numbers and arrays."""
    import msgpack

    return msgpack.packb(value, default=_plain)


def unpacked(message: bytes) -> Any:
    """What a message holds.

    Raises:
        ValueError: If it is no such message, or an array in it does not fit its data.
    """
    import msgpack

    try:
        return msgpack.unpackb(message, object_hook=_array)
    except (msgpack.UnpackException, *_UNREADABLE) as error:
        raise ValueError(f"not MessagePack with arrays ({str(error) or type(error).__name__})") from error


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.kind in _KINDS:
        contents = {b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": list(value.shape)}
        return {b"__ndarray__": True} | contents
    if isinstance(value, np.generic) and value.dtype.kind in _KINDS:
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(f"a {type(value).__name__} cannot be sent")


def _array(content: dict[Any, Any]) -> Any:
    if b"__ndarray__" in content:
        dtype, shape, data = _dtype(content), content[b"shape"], content[b"data"]
        if not all(type(length) is int and length >= 0 for length in shape):
            raise ValueError(f"an array of shape {shape}")
        if len(data) != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"an array of shape {shape} and dtype {dtype} in {len(data)} bytes")
        return np.frombuffer(data, dtype).reshape(shape)
    if b"__npgeneric__" in content:
        return _dtype(content).type(content[b"data"])
    return content


def _dtype(content: dict[Any, Any]) -> np.dtype[Any]:
    dtype = np.dtype(content[b"dtype"])
    if dtype.kind not in _KINDS:
        raise ValueError(f"an array of dtype {dtype}")
    return dtype
