"""The command `dqs`: errors become sentences and exit statuses. The commands stand in `dqs/commands/`."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys

from dqs.errors import DqsError

FAILED = 2
"""Exit status where nothing, or nothing more, could be done."""
INTERRUPTED = 128 + 2
"""What a shell reports of a program that Ctrl-C has ended."""


def main() -> None:
    """Runs the command line. A failure is one sentence on standard error and exit status 2."""
    if importlib.util.find_spec("typer") is None:
        sys.exit("dqs: the commands need more than the client does; run: pip install 'dqs[server]'")
    # What Ctrl-C cleans up, a stop by the system must clean up as well. A service that loads its modules has nothing
    # to clean up, and an exception could be lost in one of them; `dqs.server.server.serve` takes both signals over.
    is_service = sys.argv[1:2] == ["serve"]
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stopped if is_service else signal.default_int_handler)
    try:
        from dqs.commands.root import app

        app(prog_name="dqs")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except DqsError as error:
        print(f"dqs: {' '.join(error.message.split())}", file=sys.stderr)
        sys.exit(FAILED)


def _stopped(*_: object) -> None:
    """Ends a service that has not begun; see the exit statuses in `dqs/server/README.md`."""
    os._exit(0)


if __name__ == "__main__":
    main()
