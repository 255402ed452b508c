"""``python -m gcgkit.metrics NAME...``: download the weights of metric networks."""

import sys

from .networks import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
