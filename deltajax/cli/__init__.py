"""The command line: `deltajax run`, `tune`, `explain`, `demo`, `bench`, `paper` and `cifar`.

What a user got wrong ends in one line on stderr that names it and the remedy, and in exit code 2. A traceback
is a fault of deltajax.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import tyro

from deltajax.cli.cifar import Cifar
from deltajax.cli.network import UserError
from deltajax.cli.paper import Paper
from deltajax.cli.reports import Bench, Demo, Explain
from deltajax.cli.run import Run
from deltajax.cli.tune import Tune
from deltajax.video import VideoError

Command = (
    Annotated[Run, tyro.conf.subcommand("run")]
    | Annotated[Tune, tyro.conf.subcommand("tune")]
    | Annotated[Explain, tyro.conf.subcommand("explain")]
    | Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
    | Annotated[Paper, tyro.conf.subcommand("paper")]
    | Annotated[Cifar, tyro.conf.subcommand("cifar")]
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code: 0, or 2 if the user has to change something."""
    command = tyro.cli(
        Command,  # pyright: ignore[reportArgumentType]
        prog="deltajax",
        description="Run vision networks on video and recompute only what changed.",
        args=arguments,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    try:
        command.run()
    except (UserError, VideoError) as error:
        print(f"deltajax: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("deltajax: stopped", file=sys.stderr)
        return 130
    return 0
