"""`python -m batchwise.sandbox`: the sandbox alone, until interrupted. Its first line of output is its base URL."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading

from .server import Sandbox


def main(arguments: list[str] | None = None) -> int:
    """Run the sandbox until SIGINT or SIGTERM."""
    options = vars(_parser().parse_args(arguments))
    as_json = options.pop("json")
    stop = threading.Event()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with Sandbox(**options) as sandbox:
        said = {"base_url": sandbox.base_url, "needs_key": options["api_keys"] is not None}
        values = {"command": "sandbox", "exit_code": 0, **said}
        sys.stdout.write((json.dumps(values) if as_json else sandbox.base_url) + "\n")
        sys.stdout.flush()
        stop.wait()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m batchwise.sandbox", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0 takes a free one")
    parser.add_argument("--window", type=float, default=86_400.0, metavar="S", help="batch window in seconds")
    parser.add_argument("--retention", type=float, default=29 * 86_400.0, metavar="S", help="how long results are kept")
    for name, what in (("sync", "a Messages call"), ("batch", "a batch"), ("cancel", "a cancel")):
        help_ = f"how long {what} takes, in seconds"
        parser.add_argument(f"--{name}-latency", type=float, default=0.0, metavar="S", help=help_)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clock-skew", type=float, default=0.0, metavar="S", help="how far the server's clock is off")
    parser.add_argument("--batch-queue-limit", type=int, default=None, metavar="ROWS")
    parser.add_argument(
        "--api-key", dest="api_keys", action="append", default=None, metavar="KEY", help="a valid key; repeatable"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, with the base URL in it")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
