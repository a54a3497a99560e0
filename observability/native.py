"""Compiles the C files here once per machine and loads them; without a C compiler the same is counted with numpy."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from functools import cache
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType
from typing import TypeVar

_FOLDER = Path(__file__).parent
# Sums may be reordered, which they are in numpy too; NaN, infinities and denormal numbers keep their meaning.
FLAGS = ("-O3", "-shared", "-fPIC", "-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math", "-fno-math-errno")
TIMEOUT_SECONDS = 60.0
_POINTER = ctypes.c_void_p
# The arguments of each function: p is a pointer, n a whole number, d another, o an object of Python's.
_ARGUMENTS = {"p": _POINTER, "n": ctypes.c_int64, "d": ctypes.c_double, "o": ctypes.py_object}
_TALLY = dict.fromkeys(("trimtab_tally_float", "trimtab_tally_double"), "pnpnppp")
_COUNT = {
    "trimtab_add_codes": "pnnnnpp",
    "trimtab_tables_float": "pnnp",
    "trimtab_tables_double": "pnnp",
    "trimtab_tables_size_float": "nn",
    "trimtab_tables_size_double": "nn",
    "trimtab_groups": "pnnp",
    "trimtab_groups_size": "n",
    "trimtab_probe_count": "ppnnnn",
    "trimtab_probe_add_columns": "ppn",
    "trimtab_probe_count_waiting": "p",
    "trimtab_copy": "npppp",
}
_FUNCTIONS = {
    "count": _COUNT,
    "tally": _TALLY,
    "offer": {"trimtab_offer": "oppnno"},
    "dispatch": {"trimtab_register": "pp"},
}
_RESULTS: dict[str, type] = {
    "trimtab_tables_size_float": ctypes.c_int64,
    "trimtab_tables_size_double": ctypes.c_int64,
    "trimtab_groups_size": ctypes.c_int64,
    "trimtab_offer": ctypes.py_object,
    "trimtab_probe_count": ctypes.c_int,
    "trimtab_register": ctypes.c_int32,
}
# What includes Python's own headers, which not every machine has.
_WITH_HEADERS = ("offer",)
Loaded = TypeVar("Loaded", bound=ctypes.CDLL)
_log = logging.getLogger(__name__)


@cache
def library(name: str = "count") -> ctypes.CDLL | None:
    """The compiled functions of the C file `name`, or None where they cannot be had. Half a second the first time."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None or os.name != "posix":
        return None
    try:
        return _declared(ctypes.CDLL(str(_compiled(compiler, name))), name)
    except (OSError, subprocess.SubprocessError, AttributeError) as error:
        _log.info("counting with numpy: %s could not be compiled: %s", _FOLDER / f"{name}.c", error)
        return None


@cache
def compiled(source: Path, *functions: tuple[str, str]) -> ctypes.CDLL | None:
    """The functions, with the letters of their arguments, of another package's C file; None as with `library`."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None or os.name != "posix":
        return None
    try:
        loaded = ctypes.CDLL(str(_made(compiler, source, FLAGS, "")))
        for name, arguments in functions:
            function = getattr(loaded, name)
            function.argtypes, function.restype = [_ARGUMENTS[letter] for letter in arguments], None
        return loaded
    except (OSError, subprocess.SubprocessError, AttributeError) as error:
        _log.info("doing without %s, which could not be compiled: %s", source, error)
        return None


@cache
def brief_calls(name: str = "count") -> ctypes.PyDLL | None:
    """The same functions, called without letting other threads have Python meanwhile: for calls of microseconds.

    A thread that lets go of Python may wait milliseconds to get it back.
    """
    loaded = library(name)
    return None if loaded is None else _declared(ctypes.PyDLL(loaded._name, handle=loaded._handle), name)


@cache
def extension(source: Path, *flags: str) -> ModuleType | None:
    """The Python module `trimtab_NAME` that a C file NAME.c makes, or None where it cannot be had; for Linux only.

    `flags` are further ones of the compiler's.
    """
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None or sys.platform != "linux":
        return None
    try:
        path = _made(compiler, source, ("-O2", *FLAGS[1:3], *flags, _headers()), sys.version)
        loader = ExtensionFileLoader(f"trimtab_{source.stem}", str(path))
        module = module_from_spec(ModuleSpec(loader.name, loader, origin=str(path)))
        loader.exec_module(module)
        return module
    except (OSError, subprocess.SubprocessError, ImportError) as error:
        _log.info("doing without %s, which could not be compiled: %s", source, error)
        return None


def _headers() -> str:
    return f"-I{sysconfig.get_paths()['include']}"


def _compiled(compiler: str, name: str) -> Path:
    """The shared library of a C file here."""
    headers = name in _WITH_HEADERS
    flags = (*FLAGS, _headers()) if headers else FLAGS
    return _made(compiler, _FOLDER / f"{name}.c", flags, sys.version if headers else "")


def _made(compiler: str, source: Path, flags: Sequence[str], built_for: str) -> Path:
    """A compiled file, from the user's cache where this machine has made it before."""
    name = source.stem
    text = b"".join(file.read_bytes() for file in (source, *sorted(source.parent.glob(f"{name}*.h"))))
    key = hashlib.sha256(text + repr((compiler, tuple(flags), built_for)).encode() + _processor()).hexdigest()[:16]
    folder = _folder()
    path = folder / f"{name}-{key}.so"
    if path.exists() and path.stat().st_uid == os.getuid():
        return path
    handle, unfinished = tempfile.mkstemp(dir=folder, suffix=".so")
    os.close(handle)
    try:
        for machine in (["-march=native"], []):
            command = [compiler, *flags, *machine, str(source), "-o", unfinished, "-lm", "-pthread"]
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


def _declared(loaded: Loaded, library_name: str = "count") -> Loaded:
    for name, arguments in _FUNCTIONS[library_name].items():
        function = getattr(loaded, name)
        function.argtypes = [_ARGUMENTS[letter] for letter in arguments]
        function.restype = _RESULTS.get(name)
    return loaded
