"""What a server and the process of its shadows tell each other: length-prefixed msgpack over a socket pair."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np

from serving.protocol.tensors import Array

_LENGTH_BYTES = 4
# A frame that says it is longer is none: a batch is bounded by what may wait for a shadow, many times below this.
MAX_FRAME_BYTES = 2**31


class Packed(msgspec.Struct, frozen=True, array_like=True):
    """An array: its dtype's text, its shape, and its values in C order (writable where they are read)."""

    kind: str
    shape: tuple[int, ...]
    content: bytearray

    @staticmethod
    def of(array: Array) -> Packed:
        """The array as it travels. Its dtype is one of numbers."""
        whole = np.ascontiguousarray(array)
        return Packed(whole.dtype.str, array.shape, memoryview(whole.reshape(-1).view(np.uint8)))  # type: ignore[arg-type]

    def array(self) -> Array:
        """The array again, over the message's own memory."""
        return np.frombuffer(self.content, np.dtype(self.kind)).reshape(self.shape)


class Load(msgspec.Struct, frozen=True, tag=True):
    """Have this artifact ready under a key, for steps of so many rows."""

    key: str
    folder: str
    digest: str
    step_rows: int


class Drop(msgspec.Struct, frozen=True, tag=True):
    """Forget the model of this key."""

    key: str


class Answers(msgspec.Struct, frozen=True):
    """Requests of one answering version that stand one after another in a batch: rows of each, and the answers.

    `outputs` is None where there was no answer to compare with; else one array an output, the rows of all requests.
    """

    version: int
    names: tuple[str, ...]
    rows: list[int]
    outputs: list[Packed] | None


class Batch(msgspec.Struct, frozen=True, tag=True):
    """Run these columns, and compare the outputs with the answers. `outputs`: whether they are wanted back."""

    key: str
    columns: list[Packed]
    groups: list[Answers]
    outputs: bool


class Loaded(msgspec.Struct, frozen=True, tag=True):
    """A model is ready, or why it is not."""

    key: str
    error: str = ""


class Difference(msgspec.Struct, frozen=True):
    """What `serving.routing.disagreement.Disagreement` holds, of the answers of one version."""

    version: int
    absolute: Packed
    relative: Packed
    incomparable: int
    ranked_rows: int
    other_rows: int


class Ran(msgspec.Struct, frozen=True, tag=True):
    """What a batch came to; with `odd` it says why nothing of it counts: the server then runs it itself."""

    seconds: float
    found: list[Difference]
    outputs: list[Packed]
    odd: str = ""


ToWorker = Load | Drop | Batch
FromWorker = Loaded | Ran
_encoder = msgspec.msgpack.Encoder()
_to_worker = msgspec.msgpack.Decoder(ToWorker)
_from_worker = msgspec.msgpack.Decoder(FromWorker)


def framed(message: ToWorker | FromWorker) -> bytearray:
    """The message with its length before it."""
    frame = bytearray(_LENGTH_BYTES)
    _encoder.encode_into(message, frame, _LENGTH_BYTES)
    frame[:_LENGTH_BYTES] = (len(frame) - _LENGTH_BYTES).to_bytes(_LENGTH_BYTES, "little")
    return frame


def for_worker(content: bytes) -> ToWorker:
    """A message to the process. Raises msgspec.MsgspecError for what is none."""
    message: ToWorker = _to_worker.decode(content)
    return message


def from_worker(content: bytes) -> FromWorker:
    """A message of the process. Raises msgspec.MsgspecError for what is none."""
    message: FromWorker = _from_worker.decode(content)
    return message


class Frames:
    """Cuts what is read from a socket into messages."""

    def __init__(self) -> None:
        self._read = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The frames that are whole now. Raises ValueError for a length that none has."""
        self._read += data
        while len(self._read) >= _LENGTH_BYTES:
            end = _LENGTH_BYTES + int.from_bytes(self._read[:_LENGTH_BYTES], "little")
            if end > MAX_FRAME_BYTES:
                raise ValueError(f"a frame of {end} bytes: at most {MAX_FRAME_BYTES}")
            if len(self._read) < end:
                return
            frame = bytes(self._read[_LENGTH_BYTES:end])
            del self._read[:end]
            yield frame
