"""The command line: `sance-audio train | generate | restore | invert | detect | score | export |
evaluate | page | demo | info`.

A user's mistake ends in one line on standard error and exit status 2; only our own mistakes show a
traceback.
"""

from __future__ import annotations

__all__ = ["main"]

import sys
from collections.abc import Sequence
from typing import Any

import tyro

from sance_audio.cli.demo import Demo, demo
from sance_audio.cli.export import Export, export
from sance_audio.cli.runs import Evaluate, Info, Page, evaluate, info, page, train
from sance_audio.cli.scores import Detect, Score, detect, score
from sance_audio.cli.sounds import Generate, Invert, Restore, generate, invert, restore
from sance_audio.recipe import one_line_errors

DESCRIPTION = "Energy-based models of sound: train, generate, score, listen."

COMMANDS: dict[str, tuple[Any, Any]] = {
    "generate": (Generate, generate),
    "restore": (Restore, restore),
    "invert": (Invert, invert),
    "detect": (Detect, detect),
    "score": (Score, score),
    "export": (Export, export),
    "evaluate": (Evaluate, evaluate),
    "page": (Page, page),
    "demo": (Demo, demo),
    "info": (Info, info),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `sance-audio`; exits with status 2 on a user's mistake."""
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    with one_line_errors("sance-audio"):
        if name == "--version":
            from sance_audio import __version__

            print(__version__)
        elif name in ("-h", "--help"):
            print(
                f"usage: sance-audio COMMAND [options]\n\n{DESCRIPTION}\n\n  train     Run a "
                f"recipe."
            )
            for command, (options, _) in COMMANDS.items():
                print(f"  {command:9} {options.__doc__}")
            print("\nsance-audio COMMAND --help says more.")
        elif name == "train":
            train(rest)
        elif name in COMMANDS:
            options, function = COMMANDS[name]
            function(tyro.cli(options, args=rest, prog=f"sance-audio {name}"))
        else:
            raise ValueError(f"no command named {name!r}; there are: train, {', '.join(COMMANDS)}")
