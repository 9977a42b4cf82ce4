"""The command `dqs`: errors become sentences and exit statuses. The commands stand in `dqs/commands/`."""

from __future__ import annotations

import importlib.util
import signal
import sys

from dqs.errors import DqsError

FAILED = 2
"""Exit status where nothing, or nothing more, could be done."""


def main() -> None:
    """Runs the command line. A failure is one sentence on standard error and exit status 2."""
    if importlib.util.find_spec("typer") is None:
        sys.exit("dqs: the commands need more than the client does; run: pip install 'dqs[server]'")
    from dqs.commands.root import app

    # What Ctrl-C cleans up, a stop by the system must clean up as well.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app(prog_name="dqs")
    except DqsError as error:
        print(f"dqs: {' '.join(error.message.split())}", file=sys.stderr)
        sys.exit(FAILED)


if __name__ == "__main__":
    main()
