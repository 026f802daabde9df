"""`kernels.cc`, compiled on this machine for this machine when it is first asked for, and kept."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from importlib.metadata import version
from pathlib import Path

import jax
from platformdirs import user_cache_path

FOLDER = Path(__file__).parent
SEGMENTS, DETECT = "deltajax_segments", "deltajax_detect"  # handlers
# Everything as it is written, NaN and infinity included; `vector.h` says where a product and a sum are one operation.
FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-shared",
         "-fPIC")


def compiler() -> list[str]:
    """The C++ compiler, `CXX` first.

    Raises:
        ValueError: there is none.
    """
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        if name and (words := shlex.split(name)) and shutil.which(words[0]):
            return words
    raise ValueError(
        "`kernels='native'` needs a C++ compiler, once, and found neither g++ nor clang++; install one, name it in the "
        "environment variable CXX, or leave `kernels` out."
    )


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(
            f"`kernels='native'` could not be compiled by {shlex.join(command)}:\n{done.stderr.strip()}\nName another "
            "compiler in the environment variable CXX, or leave `kernels` out."
        )
    return done.stdout


def place() -> Path:
    """The file, named after all that it depends on: sources, compiler, its options, this processor, jaxlib."""
    command = compiler()
    macros = _run([*command, *FLAGS, "-dM", "-E", "-x", "c++", os.devnull])
    sources = [file.read_text() for file in sorted([*FOLDER.glob("*.cc"), *FOLDER.glob("*.h")])]
    key = "\n".join([*sources, shlex.join([*command, *FLAGS]), macros, version("jaxlib")])
    return user_cache_path("deltajax") / f"kernels-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"


def build() -> Path:
    """Compile, if that has not been done; some twenty seconds.

    Raises:
        ValueError: there is no compiler, or it fails; the message has what it said.
    """
    file = place()
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:  # another process may be doing the same
            made = Path(folder) / file.name
            _run([*compiler(), *FLAGS, "-isystem", jax.ffi.include_dir(), str(FOLDER / "kernels.cc"), "-o", str(made)])
            made.replace(file)
    return file


def lanes() -> int:
    """How many floats a vector has.

    Raises:
        ValueError: as `_library`.
    """
    return _library().deltajax_lanes()


def has_pairs() -> bool:
    """Whether the processor multiplies pairs of bfloat16.

    Raises:
        ValueError: as `_library`.
    """
    return bool(_library().deltajax_pairs())


@functools.cache
def _library() -> ctypes.CDLL:
    """The kernels, made known to XLA.

    Raises:
        ValueError: as `build`; or JAX does not compute on the CPU.
    """
    if jax.default_backend() != "cpu":
        raise ValueError(f"`kernels='native'` is for CPUs, and JAX computes on {jax.default_backend()}; leave it out.")
    library = ctypes.cdll.LoadLibrary(str(build()))
    for name in ("deltajax_type", "deltajax_type_info"):
        getattr(library, name).restype = ctypes.c_void_p
    capsule = jax.ffi.pycapsule
    jax.ffi.register_ffi_type(SEGMENTS, {
        "type_id": capsule(library.deltajax_type()), "type_info": capsule(library.deltajax_type_info()),
    }, platform="cpu")
    stages = {"instantiate": capsule(library.deltajax_read), "execute": capsule(getattr(library, SEGMENTS))}
    jax.ffi.register_ffi_target(SEGMENTS, stages, platform="cpu")
    jax.ffi.register_ffi_target(DETECT, capsule(getattr(library, DETECT)), platform="cpu")
    return library
