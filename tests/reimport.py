"""gcgkit imported once more within the test's process: what a process of its own shows, without torch's seconds."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def fresh(*missing: str, also: tuple[str, ...] = ()) -> Iterator[None]:
    """Let gcgkit be imported anew within a ``with`` block, as where the packages ``missing`` are not installed.

    also: other modules to import anew, because they hold parts of gcgkit. Afterwards the modules are those from before.
    """
    own = ("gcgkit", *missing, *also)
    taken = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] in own}
    sys.modules.update(dict.fromkeys(missing))
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] in own]:
            del sys.modules[name]
        sys.modules.update(taken)


def loaded() -> list[str]:
    """Return the names of gcgkit's modules that have been imported."""
    return sorted(name for name in sys.modules if name.startswith("gcgkit."))
