"""The stock SuperNode, with one change: when its work ends, its process ends.

flwr 1.41 takes a TLS handshake that times out, as when a firewall drops a connection, for a wrong
certificate and gives up. Its main loop ends, but the thread of its Runtime API keeps the process
alive, so that nobody notices. Here the process ends, and its keeper starts it again.
"""

from __future__ import annotations

import os
import sys

from flwr.supernode.cli import flower_supernode


def main() -> None:
    """Run until the SuperNode ends for whatever reason; never returns."""
    code: object = 1
    try:
        flower_supernode()
    except SystemExit as ended:
        code = ended.code
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # Not sys.exit, which waits for the threads.
        os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    main()
