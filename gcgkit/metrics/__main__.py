"""``python -m gcgkit.metrics NAME...``: download the weights of metric networks."""

import argparse
import sys

from ..utils.commands import run_reporting_errors
from .networks import NETWORKS, fetch

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m gcgkit.metrics", description="Download metrics' weights.")
    parser.add_argument("names", nargs="+", choices=NETWORKS, metavar="NAME", help=", ".join(NETWORKS))
    names = parser.parse_args().names

    def work() -> None:
        for name in names:
            print(f"{NETWORKS[name].label} is ready: {', '.join(file.name for file in fetch(name))}")

    sys.exit(run_reporting_errors(work))
