"""`aalnet submit`: a command of ours as a Ray job, followed to its end."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from aalnet.errors import ConfigError, UserError
from aalnet.settings import load_settings
from cluster.launch import jobs
from cluster.runs.contestants import contestants, named

VERBS = ("train", "tune", "evaluate", "compare")
INTERRUPTED = 130

Reader = Callable[[str, list[str]], object]  # a file's path and its `--set` values
# What reads a command's file here, so that a typing error costs no node.
READERS: Mapping[str, Reader] = {"train": load_settings, "compare": load_settings}


def submit_app(readers: Mapping[str, Reader]) -> typer.Typer:
    """The command. `readers` read the files of commands that are not cluster's: a campaign's."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

    @app.command(
        context_settings={"allow_interspersed_args": False, "ignore_unknown_options": True}
    )
    def submit(
        command: Annotated[
            list[str],
            typer.Argument(help=f"{', '.join(VERBS)}, and its arguments", metavar="COMMAND"),
        ],
        address: Annotated[
            str, typer.Option(help="the cluster's dashboard", envvar="RAY_API_SERVER_ADDRESS")
        ] = "http://127.0.0.1:8265",
        name: Annotated[
            str | None, typer.Option(help="of the job; default: made up", metavar="JOB")
        ] = None,
        working_dir: Annotated[Path, typer.Option(help="the folder that is uploaded")] = Path(),
        no_wait: Annotated[bool, typer.Option("--no-wait", help="return once it is taken")] = False,
    ) -> None:
        """Run a command on a cluster as a Ray job; ends with the job's own exit code.

        `aalnet submit train configs/demo.yaml --storage s3://bucket/prefix`. The AWS_, AALNET_,
        GLOO_ and NCCL_ variables of this shell go along. Ctrl-C asks whether the job shall stop.
        """
        folder = working_dir.expanduser().resolve()
        check_command(command, folder, {**READERS, **readers})
        client = jobs.job_client(address)
        size_mib = jobs.upload_bytes(folder) / jobs.MIB
        print(f"     cluster  {client.get_address()}\n      upload  {folder}, {size_mib:.1f} MiB")
        job = jobs.submit_job(client, command, folder, name)
        print(f"         job  {job}", flush=True)
        if no_wait:
            print(f"follow it: ray job logs --follow {job}; stop it: ray job stop {job}")
            return
        raise typer.Exit(follow_job(jobs.JobFollower(client, job, _write)))

    return app


def check_command(
    command: Sequence[str], folder: Path, readers: Mapping[str, Reader] = READERS
) -> None:
    """Find the mistakes that the job would only find on the cluster.

    Raises:
        UserError: what is wrong, and the next move.
    """
    verb, arguments = command[0], list(command[1:])
    if verb not in VERBS:
        raise UserError(f"`{verb}` cannot be submitted; one of {', '.join(VERBS)} can")
    if "--help" in arguments:
        raise UserError(f"its options are told by `aalnet {verb} --help`")
    if not folder.is_dir():
        raise UserError(f"--working-dir {folder} is not a folder")
    _check_storage(arguments)
    if verb != "evaluate" and arguments and not arguments[0].startswith("-"):
        config, overrides = _file_in(folder, arguments[0]), values_of(arguments, "--set")
        if verb in readers:
            readers[verb](str(config), overrides)
        for models in values_of(arguments, "--models") if verb == "compare" else ():
            for file in filter(None, named(models).values()):
                _file_in(folder, file)
            contestants(str(config), models, overrides, folder)


def _file_in(folder: Path, name: str) -> Path:
    """A file that the job gets, for it lies in the folder that is uploaded."""
    file = folder / name
    if not file.resolve().is_relative_to(folder):
        raise ConfigError(
            f"`{name}` lies outside {folder}, which is what the job gets; copy it there, or give "
            "--working-dir"
        )
    if not file.is_file():
        raise ConfigError(f"there is no file `{name}` in {folder}; give its path there")
    return file


def _check_storage(arguments: Sequence[str]) -> None:
    storage = [*values_of(arguments, "--storage"), os.environ.get("AALNET_STORAGE", "")][0]
    if not storage.startswith(("s3://", "/", "file:///")):
        raise ConfigError(
            f"storage `{storage or './aalnet-runs'}` would lie in the job's own folder, which Ray "
            "removes; give --storage s3://bucket/prefix, or the absolute path of a folder that "
            "every node shares"
        )


def values_of(arguments: Sequence[str], option: str) -> list[str]:
    """The values of `--option VALUE` and `--option=VALUE`, in their order."""
    pairs = zip(arguments, [*arguments[1:], ""], strict=True)
    return [
        after if argument == option else argument.removeprefix(f"{option}=")
        for argument, after in pairs
        if argument == option or argument.startswith(f"{option}=")
    ]


def follow_job(follower: jobs.JobFollower) -> int:
    """Show the job's log until it ends; gives its exit code. Ctrl-C asks what to do."""
    job = follower.job
    while True:
        try:
            return jobs.exit_code(follower.follow())
        except KeyboardInterrupt:
            answer = _ask() if sys.stdin.isatty() else "d"
        if answer == "s":
            follower.stop()
            print("asked to stop: it saves a checkpoint first", file=sys.stderr)
        elif answer == "d":
            print(
                f"detached; `{job}` goes on. Follow it: ray job logs --follow {job}; "
                f"stop it: ray job stop {job}", file=sys.stderr,
            )  # fmt: skip
            return INTERRUPTED


def _ask() -> str:
    """`s`top, `d`etach or `c`ontinue; a second Ctrl-C detaches, which harms nothing."""
    question = "\n[s]top the job after a checkpoint, [d]etach and let it run, [c]ontinue? [c] "
    try:
        return input(question).strip().lower()[:1] or "c"
    except (KeyboardInterrupt, EOFError):
        print(file=sys.stderr)
        return "d"


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
