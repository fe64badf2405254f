"""The front door: `aalnet`, also `python -m aalnet`. Mounts every command, imports none early.

The one module under `aalnet/` that may name other packages of ours; it does so as text, so
`aalnet --help` loads neither torch nor ray.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from aalnet.errors import AalnetError

# name: (module whose `app` is mounted, the line shown by `aalnet --help`)
COMMANDS = {
    "train": ("cluster.commands.train", "Train a model on this machine or a Ray cluster."),
    "tune": ("tuner.commands.tune", "Search settings in a campaign of many trials."),
    "campaigns": ("tuner.commands.campaigns", "List, show and report campaigns; their winners."),
    "submit": ("tuner.commands.submit", "Run a command on a cluster, as a Ray job."),
    "runs": ("cluster.commands.runs", "List, show and watch runs."),
    "watch": ("tuner.commands.watch", "Show how a run or a campaign goes on, with sparklines."),
    "sample": ("deploy.commands.sample", "Draw several pictures for condition images."),
    "evaluate": ("cluster.commands.evaluate", "Measure a model on held-out pairs."),
    "compare": ("cluster.commands.compare", "Train models alike, over seeds; measure them."),
    "promote": ("cluster.commands.promote", "Point a model's name to a checkpoint."),
    "serve": ("deploy.commands.serve", "Serve a model over HTTP, with a page to try it on."),
    "deploy": ("deploy.commands.deploy", "Put it all onto Kubernetes: apply, status, logs."),
    "data": ("cluster.commands.data", "Pack pictures into a data set; inspect one."),
    "doctor": ("cluster.commands.doctor", "Check this machine, the storage and the cluster."),
    "schema": ("cluster.commands.schema", "Print the JSON schema of a settings file."),
}
EXTRAS = {  # of pyproject.toml: what a command needs; the others need `train`
    "tune": "tune", "campaigns": "tune", "submit": "submit", "serve": "endpoint",
    "deploy": "deploy",
}  # fmt: skip
CAMPAIGNS = {"optuna", "plotly", "psycopg"}  # packages that only `tune` brings
INTERRUPTED = 130  # what typer makes of a KeyboardInterrupt, as shells do


class LazyGroup(TyperGroup):
    """A group that lists commands by name and imports a module only when its command is run."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A stand-in with the one-line help; None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        return TyperCommand(cmd_name, help=COMMANDS[cmd_name][1])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command itself, its module imported now."""
        name, listed, rest = super().resolve_command(ctx, args)
        if name is None or listed is None:
            return name, listed, rest
        module = importlib.import_module(COMMANDS[name][0])
        return name, typer.main.get_command(module.app), rest


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="AALNet on Ray: train, compare and sample conditional image generators.",
)


@app.callback()
def _root() -> None:
    """Hold the options of the root; it has none."""


def main() -> None:
    """Run the command line. Exit code 2 for a user's mistake, 1 for a failure, 130 for Ctrl-C."""
    try:
        app()
    except AalnetError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        print(f"error: {_what_to_install(error)}", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, SystemExit) as end:
        if isinstance(end, SystemExit) and (type(end) is not SystemExit or end.code != INTERRUPTED):
            raise
        print("stopped by Ctrl-C; the same command goes on from here", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _what_to_install(error: ModuleNotFoundError) -> str:
    """The next move where a command's packages are missing; raises `error` where one is ours."""
    package = (error.name or "").partition(".")[0]
    if package in {"", "aalnet", "cluster", "tuner", "deploy"}:
        raise error
    command = next((word for word in sys.argv[1:] if word in COMMANDS), "train")
    extra = "tune" if package in CAMPAIGNS else EXTRAS.get(command, "train")
    return (
        f"`aalnet {command}` needs the package `{package}`, which is not installed here; "
        f"try pip install 'aalnet-cloud[{extra}]', from this folder pip install -e '.[{extra}]'"
    )


if __name__ == "__main__":
    main()
