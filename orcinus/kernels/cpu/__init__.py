"""The native CPU kernel set: C++ for AMX, AVX-512 and AVX2, compiled on first use."""

from orcinus.kernels.cpu.kernels import CpuKernels
from orcinus.kernels.cpu.library import NativeBuildError, supported

__all__ = ["CpuKernels", "NativeBuildError", "available"]


def available() -> bool:
    """Whether this processor has an instruction set that the kernels are written for. Builds nothing."""
    return bool(supported())
