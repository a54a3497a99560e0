"""Compiles the C files here once per machine and loads them; without a C compiler the same is counted with numpy."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

SOURCES = tuple(Path(__file__).with_name(name) for name in ("count.c", "tally.c"))
# Sums may be reordered, which they are in numpy too; NaN, infinities and denormal numbers keep their meaning.
FLAGS = ("-O3", "-shared", "-fPIC", "-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math", "-fno-math-errno")
TIMEOUT_SECONDS = 60.0
_log = logging.getLogger(__name__)


@cache
def library() -> ctypes.CDLL | None:
    """The compiled functions of the C files, or None where they cannot be had. A second the first time."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None or os.name != "posix":
        return None
    try:
        return _declared(ctypes.CDLL(str(_compiled(compiler))))
    except (OSError, subprocess.SubprocessError, AttributeError) as error:
        _log.info("counting with numpy: %s could not be compiled: %s", " and ".join(map(str, SOURCES)), error)
        return None


def _compiled(compiler: str) -> Path:
    """The shared library, from the user's cache where this machine has made it before."""
    text = b"".join(source.read_bytes() for source in SOURCES)
    key = hashlib.sha256(text + repr((compiler, FLAGS)).encode() + _processor()).hexdigest()[:16]
    folder = _folder()
    path = folder / f"count-{key}.so"
    if path.exists() and path.stat().st_uid == os.getuid():
        return path
    handle, unfinished = tempfile.mkstemp(dir=folder, suffix=".so")
    os.close(handle)
    try:
        for machine in (["-march=native"], []):
            command = [compiler, *FLAGS, *machine, *map(str, SOURCES), "-o", unfinished, "-lm"]
            made = subprocess.run(command, capture_output=True, timeout=TIMEOUT_SECONDS, check=False)
            if made.returncode == 0:
                # Two processes may do this at once: each replaces the file with an equal one.
                os.replace(unfinished, path)
                return path
        raise OSError(made.stderr.decode(errors="replace").strip()[-500:])
    finally:
        Path(unfinished).unlink(missing_ok=True)


def _folder() -> Path:
    """A folder that only this user writes to: what is loaded from it is run."""
    try:
        folder = Path.home() / ".cache" / "trimtab"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.access(folder, os.W_OK) and folder.stat().st_uid == os.getuid() and not folder.stat().st_mode & 0o022:
            return folder
    except (OSError, RuntimeError):
        pass
    return Path(tempfile.mkdtemp(prefix="trimtab-"))


def _processor() -> bytes:
    """What `-march=native` depends on: a home folder may be shared between machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line for line in lines if line.startswith(("flags", "Features"))), "").encode()
    except OSError:
        return platform.processor().encode() + platform.machine().encode()


def _declared(loaded: ctypes.CDLL) -> ctypes.CDLL:
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    for name in ("trimtab_count_float", "trimtab_count_double"):
        getattr(loaded, name).argtypes = [pointer, *[number] * 4, pointer, number, pointer, pointer]
        getattr(loaded, name).restype = None
    for name in ("trimtab_tally_float", "trimtab_tally_double"):
        getattr(loaded, name).argtypes = [pointer, number, pointer, number, pointer, pointer, pointer]
        getattr(loaded, name).restype = None
    loaded.trimtab_count_codes.argtypes = [pointer, *[number] * 4, pointer]
    loaded.trimtab_count_codes.restype = None
    return loaded
