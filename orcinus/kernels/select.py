"""Chooses the kernel set, once, at start."""

from __future__ import annotations

from typing import Literal

import torch

from orcinus.errors import ConfigurationError
from orcinus.kernels import KernelSet
from orcinus.kernels.cpu import CpuKernels, NativeBuildError, available
from orcinus.kernels.reference import ReferenceKernels


def select_kernels(
    choice: Literal["auto", "cpu", "reference"], device: torch.device, dtype: torch.dtype
) -> tuple[KernelSet, str | None]:
    """The kernel set for a device, and what the user should be told about the choice.

    Raises:
        ConfigurationError: `cpu` was asked for and can't be had.
    """
    if choice == "reference" or device.type != "cpu":
        if choice == "cpu":
            raise ConfigurationError(f"the native CPU kernels can't run on {device.type}; use kernels=auto")
        return ReferenceKernels(), None
    if not available():
        why = "this processor or compiler is not supported"
    else:
        try:
            return CpuKernels(), None
        except NativeBuildError as error:
            why = str(error)
    if choice == "cpu":
        raise ConfigurationError(f"the native CPU kernels can't be used: {why}")
    return ReferenceKernels(), f"using the plain torch kernels, which are slower: {why}"
