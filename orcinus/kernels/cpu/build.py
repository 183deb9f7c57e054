"""`python -m orcinus.kernels.cpu.build`: compile this machine's kernels ahead of the first start."""

from __future__ import annotations

import logging
import platform

from orcinus.kernels.cpu.library import build, supported

logger = logging.getLogger(__name__)


def main() -> None:
    """Build the best instruction set's library, or say that there is none."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not supported():
        logger.info("no native CPU kernels for %s: plain torch will be used", platform.machine())
        return
    logger.info("CPU kernels: %s", build(supported()[0]))


if __name__ == "__main__":
    main()
