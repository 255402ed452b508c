"""The command ``gcgkit``: colour films, check this machine, train, measure.

torch and the rest load when a command needs them, so ``--help`` is quick.
Exit codes: 0 done, 1 an error, printed as one sentence, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial

import gcgkit
from gcgkit.cli import colorize, doctor, evaluate, train


def main(argv: list[str] | None = None) -> int:
    """Run the command with these arguments, ``sys.argv``'s by default, and return its exit code."""
    args = _parser().parse_args(argv)
    try:
        args.run(args)
        return 0
    except KeyboardInterrupt:
        message, code = "interrupted; what is finished is kept, and the same command goes on.", 130
    except Exception as error:
        if args.debug:
            raise
        message, code = str(error), 1
        if type(error).__name__ == "OutOfMemoryError":
            message = "the GPU has too little memory for this; --device cpu does without."
        elif not isinstance(error, (ValueError, OSError)):  # neither bad input nor a system that refuses
            message = f"unexpected {type(error).__name__}: {error} (--debug shows where)"
    print("gcgkit:", " ".join(message.split()), file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    screen = partial(argparse.HelpFormatter, max_help_position=27, width=80)  # an option a line
    shared = {"formatter_class": screen, "allow_abbrev": False}
    about = "Video colorization with gated colour-guided diffusion."
    parser = argparse.ArgumentParser(prog="gcgkit", description=about, **shared)
    parser.add_argument("--version", action="version", version=f"gcgkit {gcgkit.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    about = {"usage": colorize.USAGE, "description": colorize.ABOUT, "epilog": colorize.EPILOG}
    command = commands.add_parser("colorize", help="colour films", **about, **shared)
    command.set_defaults(run=colorize.run)
    colorize.add_options(command)
    command.add_argument("--help-all", action=colorize.HelpAll)
    checkup = commands.add_parser("doctor", help="say what this machine can do", description=doctor.ABOUT, **shared)
    checkup.set_defaults(run=doctor.run)
    trainer = commands.add_parser("train", help="train, or go on with a run", description=train.ABOUT, **shared)
    trainer.set_defaults(run=train.run)
    train.add_options(trainer)
    about = {"usage": evaluate.USAGE, "description": evaluate.ABOUT, "epilog": evaluate.EPILOG}
    evaluator = commands.add_parser("evaluate", help="measure methods, write Table 1", **about, **shared)
    evaluator.set_defaults(run=evaluate.run)
    evaluate.add_options(evaluator)
    for each in (command, checkup, trainer, evaluator):
        about = argparse.SUPPRESS if each is command else "show the full traceback of an error"
        each.add_argument("--debug", action="store_true", help=about)
    return parser


if __name__ == "__main__":
    sys.exit(main())
