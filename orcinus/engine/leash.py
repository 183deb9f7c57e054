"""Run a command that can't outlive the process that started it. Standard library only: it runs before anything else.

    python -I -S leash.py PARENT COMMAND [ARGUMENT …]

The kernel's parent-death signal survives `exec`, so the command needs to know nothing of it. (Setting it between fork
and exec, in `preexec_fn`, can deadlock where the parent has threads.)
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Become the command. The parent may be gone before the signal is set, so look afterwards."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        sys.exit("the process that started this one is gone")
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"{command[0]} can't be started: {error.strerror}")


if __name__ == "__main__":
    main()
