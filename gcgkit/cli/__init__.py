"""The command ``gcgkit``, with a module for each of its subcommands."""


def main(argv: list[str] | None = None) -> int:
    """Run the command with these arguments, ``sys.argv``'s by default, and return its exit code."""
    from .__main__ import main as run  # or ``python -m gcgkit.cli`` would load it twice

    return run(argv)
