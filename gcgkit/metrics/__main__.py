"""``python -m gcgkit.metrics NAME...``: download the weights of metric networks."""

import argparse
import sys

from ..utils.commands import run_reporting_errors
from .networks import NETWORKS, fetch, place_of

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m gcgkit.metrics", description="Download metrics' weights.")
    parser.add_argument("names", nargs="+", choices=NETWORKS, metavar="NAME", help=", ".join(NETWORKS))
    parser.add_argument("--url", help="fetch the one network's file from this mirror; its SHA-256 is checked as well")
    args = parser.parse_args()
    if args.url and (len(args.names) != 1 or place_of(args.names[0]) is None):
        parser.error("--url is for one network whose weights are a file of their own.")

    def work() -> None:
        for name in args.names:
            try:
                found = fetch(name, args.url)
            except OSError as error:
                here = f" Or put the file at {place_of(name)}." if place_of(name) else ""
                raise type(error)(f"{error}{here}") from None
            print(f"{NETWORKS[name].label} is ready: {', '.join(file.name for file in found)}")

    sys.exit(run_reporting_errors(work))
