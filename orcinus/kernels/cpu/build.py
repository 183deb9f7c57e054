"""`python -m orcinus.kernels.cpu.build`: compile this machine's kernels ahead of the first start."""

from __future__ import annotations

import logging
import platform

from orcinus.kernels.cpu.library import NativeBuildError, build, supported

logger = logging.getLogger(__name__)


def main() -> None:
    """Build the best instruction set's library, or say that there is none."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not supported():
        logger.info("no native CPU kernels for %s: plain torch will be used", platform.machine())
        return
    try:
        logger.info("CPU kernels: %s", build(supported()[0]))
    except NativeBuildError as error:
        # Not fatal: the engine says the same at start and serves through plain torch.
        logger.warning("the native CPU kernels can't be built, plain torch will be used: %s", error)


if __name__ == "__main__":
    main()
