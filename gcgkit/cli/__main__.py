"""The command ``gcgkit``: colour films, check this machine, train, measure.

torch and the rest load when a command needs them, so ``--help`` is quick.
Exit codes: 0 done, 1 an error, printed as one sentence, 2 wrong usage, 130 interrupted.
"""

import argparse
import sys

import gcgkit
from gcgkit.cli import colorize, doctor, evaluate, status, train
from gcgkit.cli.common import SCREEN
from gcgkit.utils.commands import reason


def main(argv: list[str] | None = None) -> int:
    """Run the command with these arguments, ``sys.argv``'s by default, and return its exit code."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be text; stderr does so by itself
    args = _parser().parse_args(argv)
    try:
        args.run(args)
        return 0
    except KeyboardInterrupt:
        message, code = "interrupted; what is finished is kept, and the same command goes on.", 130
    except Exception as error:
        if args.debug:
            raise
        message, code = reason(error), 1
        if type(error).__name__ == "OutOfMemoryError":
            message = "the GPU has too little memory for this; --device cpu does without."
        elif not isinstance(error, (ValueError, OSError)):  # neither bad input nor a system that refuses
            message = f"unexpected {type(error).__name__}: {error} (--debug shows where)"
    print("gcgkit:", " ".join(message.split()), file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    about = "Video colorization with gated colour-guided diffusion."
    parser = argparse.ArgumentParser(prog="gcgkit", description=about, **SCREEN)
    parser.add_argument("--version", action="version", version=f"gcgkit {gcgkit.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, part, short in (
        ("colorize", colorize, "colour films"),
        ("status", status, "tell how far a film is"),
        ("doctor", doctor, "say what this machine can do"),
        ("train", train, "train, or go on with a run"),
        ("evaluate", evaluate, "measure methods, write Table 1"),
    ):
        texts = {key: getattr(part, key.upper(), None) for key in ("usage", "epilog")}
        command = commands.add_parser(name, help=short, description=part.ABOUT, **texts, **SCREEN)
        command.set_defaults(run=part.run)
        part.add_options(command)
        rare = part is colorize  # which lists such options with --help-all
        about = argparse.SUPPRESS if rare else "show the full traceback of an error"
        command.add_argument("--debug", action="store_true", help=about)
    return parser


if __name__ == "__main__":
    sys.exit(main())
