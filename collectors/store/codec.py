"""Matrices of samples as bytes: exact, small, and quick to read.

A column is coded by itself: a column of whole numbers, or of decimals of up to six places, as the differences of these
numbers; any other as each value's bits exclusive-or those of the value before. The eight bytes of the results are then
laid out plane by plane, so that bytes that hardly change lie together, and compressed with Zstandard.
"""

from __future__ import annotations

import struct

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from collectors.store.values import Floats

_HEADER = struct.Struct("<BBII")
_VERSION = 1
_HAS_GAPS = 1
# The code of a column is the position of its scale; the last stands for exclusive-or.
_SCALES = (1.0, 10.0, 100.0, 1000.0, 1e4, 1e6)
_XOR = len(_SCALES)
_EXACT = float(2**53)
_CODEC = pa.Codec("zstd", compression_level=3)

Bools = NDArray[np.bool_]


def pack_matrix(v: Floats, present: Bools | None = None) -> bytes:
    """The bytes of `v` [n, series]; cells that are not `present` come back as some value, and as not present."""
    columns = np.ascontiguousarray(v.T)
    gaps = b""
    if present is not None and not present.all():
        columns = _filled(columns, present.T)
        gaps = np.packbits(present.T).tobytes()
    words, codes = _coded(columns)
    planes = np.ascontiguousarray(words.reshape(-1).view(np.uint8).reshape(-1, 8).T)
    packed_gaps = _CODEC.compress(gaps, asbytes=True) if gaps else b""
    header = _HEADER.pack(_VERSION, _HAS_GAPS if gaps else 0, *v.shape)
    return b"".join(
        [
            header,
            codes.tobytes(),
            struct.pack("<I", len(packed_gaps)),
            packed_gaps,
            _CODEC.compress(planes.tobytes(), asbytes=True),
        ]
    )


def unpack_matrix(data: bytes) -> tuple[Floats, Bools | None]:
    """`v` [n, series], and which cells are present, or None if all are. Raises ValueError for another format."""
    version, flags, height, width = _HEADER.unpack_from(data)
    if version != _VERSION:
        raise ValueError(f"a block of format {version}; this version reads {_VERSION}")
    position = _HEADER.size
    codes = np.frombuffer(data, np.uint8, width, position)
    (size,) = struct.unpack_from("<I", data, position + width)
    position += width + 4
    present = None
    if flags & _HAS_GAPS:
        bits = _CODEC.decompress(data[position : position + size], (height * width + 7) // 8, asbytes=True)
        unpacked = np.unpackbits(np.frombuffer(bits, np.uint8), count=height * width)
        present = unpacked.reshape(width, height).astype(np.bool_).T
    body = _CODEC.decompress(data[position + size :], height * width * 8, asbytes=True)
    planes = np.frombuffer(body, np.uint8).reshape(8, -1)
    words = np.ascontiguousarray(planes.T).reshape(-1).view(np.uint64).reshape(width, height)
    return _decoded(words, codes).T, present


def pack_integers(numbers: NDArray[np.int64]) -> bytes:
    """Integers that mostly rise, such as times and ids."""
    steps = np.diff(numbers, prepend=np.int64(0))
    planes = np.ascontiguousarray(_zigzag(steps).view(np.uint8).reshape(-1, 8).T)
    packed: bytes = _CODEC.compress(planes.tobytes(), asbytes=True)
    return struct.pack("<I", len(numbers)) + packed


def unpack_integers(data: bytes) -> NDArray[np.int64]:
    """The integers of `pack_integers`."""
    (count,) = struct.unpack_from("<I", data)
    body = _CODEC.decompress(data[4:], count * 8, asbytes=True)
    planes = np.frombuffer(body, np.uint8).reshape(8, count)
    words = np.ascontiguousarray(planes.T).reshape(-1).view(np.uint64)
    return np.cumsum(_unzigzag(words))


def _filled(columns: Floats, present: Bools) -> Floats:
    """Gaps take the value before them, or 0, which costs the fewest bytes."""
    last = np.maximum.accumulate(np.where(present, np.arange(columns.shape[1]), -1), axis=1)
    filled: Floats = np.where(last >= 0, np.take_along_axis(columns, np.maximum(last, 0), axis=1), 0.0)
    return filled


def _coded(columns: Floats) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]:
    """`columns` [series, n] as words, and each column's code."""
    bits = columns.view(np.uint64)
    words = bits.copy()
    words[:, 1:] ^= bits[:, :-1]
    codes = np.full(len(columns), _XOR, dtype=np.uint8)
    with np.errstate(invalid="ignore", over="ignore"):
        left = np.flatnonzero((np.abs(columns) < _EXACT).all(axis=1))
        for code, scale in enumerate(_SCALES):
            if not len(left):
                break
            whole = np.rint(columns[left] * scale)
            fits: Bools = np.all(np.abs(whole) < _EXACT, axis=1)
            numbers = np.where(fits[:, None], whole, 0.0).astype(np.int64)
            # What will be read must be the same bits: minus zero, for one, is no whole number.
            exact = fits & ((numbers.astype(np.float64) / scale).view(np.uint64) == bits[left]).all(axis=1)
            chosen = left[exact]
            words[chosen] = _zigzag(np.diff(numbers[exact], axis=1, prepend=np.int64(0)))
            codes[chosen] = code
            left = left[~exact]
    return words, codes


def _decoded(words: NDArray[np.uint64], codes: NDArray[np.uint8]) -> Floats:
    first = int(codes[0]) if len(codes) else _XOR
    if (codes == first).all():
        return _decoded_column(words, first)
    columns = np.empty(words.shape, dtype=np.float64)
    for code in np.unique(codes).tolist():
        some = codes == code
        columns[some] = _decoded_column(words[some], code)
    return columns


def _decoded_column(words: NDArray[np.uint64], code: int) -> Floats:
    if code == _XOR:
        return np.bitwise_xor.accumulate(words, axis=1).view(np.float64)
    whole = np.cumsum(_unzigzag(words), axis=1).astype(np.float64)
    return whole if code == 0 else whole / _SCALES[code]


def _zigzag(numbers: NDArray[np.int64]) -> NDArray[np.uint64]:
    return ((numbers << 1) ^ (numbers >> 63)).view(np.uint64)


def _unzigzag(words: NDArray[np.uint64]) -> NDArray[np.int64]:
    return (words >> np.uint64(1)).view(np.int64) ^ -(words & np.uint64(1)).view(np.int64)
