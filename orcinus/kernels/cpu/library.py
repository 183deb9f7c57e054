"""Compiles the C++ kernels, once a machine, and loads them."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from orcinus.errors import ConfigurationError

logger = logging.getLogger(__name__)

SOURCES = Path(__file__).parent
# No contraction: which multiply-adds are fused is written in the sources, so that a row's bits can't depend on which
# copy of an inlined function worked on it.
FLAGS = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-shared",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fvisibility=hidden",
    "-pthread",
)
COMPILE_TIMEOUT = 300.0


class NativeBuildError(ConfigurationError):
    """The native kernels can't be built or loaded here; the message says why."""


@dataclass(frozen=True, slots=True)
class InstructionSet:
    """One compilation of the sources.

    Args:
        cpu_flags: what /proc/cpuinfo must list.
        compiler_flags: what lets the compiler use it.
    """

    name: str
    cpu_flags: frozenset[str]
    compiler_flags: tuple[str, ...]


_AVX2 = InstructionSet("avx2", frozenset({"avx2", "fma"}), ("-mavx2", "-mfma"))
_AVX512 = InstructionSet(
    "avx512",
    _AVX2.cpu_flags | {"avx512f", "avx512bw", "avx512vl", "avx512dq"},
    ("-mfma", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"),
)
# All processors that have the former have the latter.
_AVX512_BF16 = InstructionSet(
    "avx512bf16",
    _AVX512.cpu_flags | {"avx512_bf16", "avx512_vnni"},
    (*_AVX512.compiler_flags, "-mavx512bf16", "-mavx512vnni"),
)
_AMX = InstructionSet(
    "amx",
    _AVX512_BF16.cpu_flags | {"amx_tile", "amx_bf16"},
    (*_AVX512_BF16.compiler_flags, "-mamx-tile", "-mamx-bf16"),
)
# What is written for AMX with its tiles in plain memory: slow, for tests on processors without them.
_EMULATED_AMX = InstructionSet(
    "amx-emulated", _AVX512_BF16.cpu_flags, (*_AVX512_BF16.compiler_flags, "-DORCINUS_EMULATE_TILES")
)
# Best first.
INSTRUCTION_SETS = (_AMX, _AVX512_BF16, _AVX512, _AVX2)


@cache
def supported() -> tuple[str, ...]:
    """Names of the instruction sets that this processor and its operating system offer, best first."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return ()
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
        line = next((line for line in file if line.startswith("flags")), "")
    flags = frozenset(line.partition(":")[2].split())
    return tuple(s.name for s in INSTRUCTION_SETS if s.cpu_flags <= flags and (s is not _AMX or _may_use_tiles()))


def runnable() -> tuple[str, ...]:
    """What can be asked for by name: the supported ones, and emulated AMX where the rest of its instructions exist."""
    names = supported()
    return (*names, _EMULATED_AMX.name) if _AVX512_BF16.name in names else names


def _may_use_tiles() -> bool:
    """Ask Linux for the AMX tile registers; they are off until a process does."""
    arch_prctl, request_permission, tile_data = 158, 0x1023, 18
    return bool(ctypes.CDLL(None).syscall(arch_prctl, request_permission, tile_data) == 0)


def build(isa: str) -> Path:
    """The library of one instruction set, compiled if these sources haven't been with this compiler.

    Safe to run in several processes at once: the file appears whole or not at all.

    Raises:
        NativeBuildError: no compiler, an unknown instruction set, or a compilation that failed.
    """
    instruction_set = next((s for s in (*INSTRUCTION_SETS, _EMULATED_AMX) if s.name == isa), None)
    if instruction_set is None:
        raise NativeBuildError(f"no CPU kernels are written for {isa!r}, only for {[s.name for s in INSTRUCTION_SETS]}")
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        raise NativeBuildError("no C++ compiler: install g++ (Debian and Ubuntu: apt install g++)")
    flags = (*FLAGS, *instruction_set.compiler_flags)
    library = _build_folder() / f"kernels-{isa}-{_key(compiler, flags)}.so"
    if not library.exists():
        _compile(compiler, flags, library)
    return library


def load(isa: str) -> ctypes.CDLL:
    """The library of one instruction set, built if need be; it uses as many threads as torch is told to."""
    try:
        library = ctypes.CDLL(str(build(isa)))
        # Already in the process; its C shim knows how many.
        shim = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        library.orcinus_use_threads(ctypes.cast(shim.torch_get_num_threads, ctypes.c_void_p))
    except (OSError, AttributeError) as error:
        raise NativeBuildError(f"the CPU kernels can't be loaded: {error}") from error
    return library


def _build_folder() -> Path:
    """Beside the sources, or in the user's cache where those can't be written."""
    folder = SOURCES / "build"
    if not os.access(folder if folder.exists() else SOURCES, os.W_OK):
        folder = Path.home() / ".cache" / "orcinus" / "kernels"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NativeBuildError(f"no folder to keep the compiled kernels in: {error}") from error
    return folder


def _key(compiler: str, flags: tuple[str, ...]) -> str:
    """A hash of all that decides the library's bytes."""
    digest = hashlib.sha256()
    for source in sorted([*SOURCES.glob("*.h"), *SOURCES.glob("*.cpp")]):
        digest.update(source.name.encode() + source.read_bytes())
    digest.update(" ".join(flags).encode())
    digest.update(_run([compiler, "--version"]).encode())
    return digest.hexdigest()[:16]


def _compile(compiler: str, flags: tuple[str, ...], library: Path) -> None:
    logger.info("compiling the CPU kernels: %s", library.name)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        unfinished = Path(folder) / library.name
        _run([compiler, *flags, str(SOURCES / "kernels.cpp"), "-o", str(unfinished)])
        unfinished.replace(library)


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeBuildError(f"{command[0]} didn't run: {error}") from error
    if done.returncode != 0:
        raise NativeBuildError(f"{command[0]} failed on the CPU kernels: {done.stderr[-2000:]}")
    return done.stdout
