"""The files of a checkpoint of torch.distributed.checkpoint: hashed while they are written, and read without code."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata

from training.digests import digest_of

_CHUNK = 1 << 20
# What the index of a checkpoint is made of. Anything else in it is not loaded: to load a pickle is to run it.
_INDEX = {
    "torch.distributed.checkpoint.metadata": None,
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.planner": {"WriteItemType"},
    "torch": {"Size", "device"},
    "torch._C": {"dtype"},
    "torch.serialization": {"_get_layout"},
    "pathlib": {"PosixPath", "Path"},
    "collections": {"OrderedDict"},
}


@dataclass(frozen=True, slots=True)
class Written:
    """Size in bytes and SHA-256 of a file, as it was meant to be written."""

    size: int
    digest: str


class _Hashing(io.RawIOBase):
    """Passes on what is written, and hashes it on the way."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.hash, self.size = file, hashlib.sha256(), 0

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        self.hash.update(content)
        view = memoryview(content)
        self._file.write(view)
        self.size += view.nbytes
        return view.nbytes

    def tell(self) -> int:
        return self.size

    def fileno(self) -> int:
        return self._file.fileno()

    def flush(self) -> None:
        if not self._file.closed:
            self._file.flush()


class _HashingFiles(FileSystem):
    def __init__(self) -> None:
        self.written: dict[str, Written] = {}

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[Any]:
        """A file; what is written through it is hashed, and synced before it is closed."""
        with Path(path).open(mode) as file:
            if mode != "wb":
                yield file
                return
            hashing = _Hashing(file)
            yield hashing
            file.flush()
            os.fsync(file.fileno())
            self.written[Path(path).name] = Written(hashing.size, hashing.hash.hexdigest())

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        super().rename(path, new_path)
        self.written[Path(new_path).name] = self.written.pop(Path(path).name)


class Writer(FileSystemWriter):
    """torch's writer, which remembers what each file must hold."""

    def __init__(self, folder: Path) -> None:
        # Streams are synced here, once each.
        super().__init__(folder, sync_files=False, overwrite=True)
        self._folder = folder
        self.fs: _HashingFiles = _HashingFiles()

    def write(self, name: str, content: bytes) -> None:
        """Writes one more file."""
        with self.fs.create_stream(self._folder / name, "wb") as stream:
            stream.write(content)

    def verified(self) -> dict[str, Written]:
        """The files that this process wrote, by name. OSError where one does not hold what was written."""
        for name, one in self.fs.written.items():
            if digest_of(self._folder / name) != one.digest:
                raise OSError(f"{self._folder / name} does not hold what was written")
        return dict(self.fs.written)


class Reader(FileSystemReader):
    """torch's reader, which takes no code from the index."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The index. pickle.UnpicklingError where it holds anything else."""
        with (Path(self.path) / ".metadata").open("rb") as file:
            found = cast(Metadata, _IndexOnly(file).load())
        if found.storage_meta is not None:
            found.storage_meta.load_id = self.load_id
        return found


class _IndexOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        known = _INDEX.get(module, set())
        if (
            known is None
            or name in known
            or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype))
        ):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a checkpoint's index")
