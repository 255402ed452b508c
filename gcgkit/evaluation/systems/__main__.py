"""``python -m gcgkit.evaluation.systems``: list the compared systems, set one up, run one."""

import sys

from .setup import main

if __name__ == "__main__":
    sys.exit(main())
