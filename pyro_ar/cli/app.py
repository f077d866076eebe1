"""The command line, `pyro-ar`: options in, one clear line out where something is wrong."""

import os
import sys

from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated, Any

import typer

from pyro_ar.checks import IntractableError
from pyro_ar.cli.anomaly import anomaly
from pyro_ar.cli.compare import compare
from pyro_ar.cli.complete import complete
from pyro_ar.cli.distances import distances
from pyro_ar.cli.families import families
from pyro_ar.cli.impute import impute
from pyro_ar.cli.occlusion import occlusion
from pyro_ar.cli.parameters import parameters

__all__ = ["app", "main"]


app = typer.Typer(help="Exact autoregressive joints, and the classifiers they make.", pretty_exceptions_enable=False)
for command in (occlusion, complete, anomaly, compare, distances, families, impute, parameters):
    app.command()(command)


UsageError: Any = typer.BadParameter.__base__  # of all that typer finds wrong with a command line; it has no public name


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: Of the command line; by default those of this process.

    Returns:
        0; 2 after bad input, with one line on standard error; 130 after Ctrl-C.
    """
    try:
        result = app(None if arguments is None else list(arguments), standalone_mode=False, prog_name="pyro-ar")
    except UsageError as error:
        return _refuse(error.format_message())
    except BrokenPipeError:  # the reader of our output has gone, as in `pyro-ar ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, IntractableError, OSError) as error:
        return _refuse(str(error))
    except (typer.Abort, KeyboardInterrupt):
        return 130
    return result if isinstance(result, int) else 0


def _refuse(message: str) -> int:
    print("pyro-ar:", " ".join(message.split()), file=sys.stderr)
    return 2


@app.callback(invoke_without_command=True)
def _start(context: typer.Context, show_version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    if show_version:
        print(version("pyro-ar"))
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


if __name__ == "__main__":
    sys.exit(main())
