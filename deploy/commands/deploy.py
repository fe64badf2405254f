"""`aalnet deploy`: training, campaigns and the endpoint on Kubernetes, without torch and ray."""

from __future__ import annotations

import typer

from deploy.commands import deploy_apply, deploy_watch

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
    help="Put training, campaigns and the endpoint onto Kubernetes (docs/kubernetes.md).",
)  # fmt: skip
app.command()(deploy_apply.render)
app.command()(deploy_apply.apply)
app.command()(deploy_watch.status)
app.command()(deploy_watch.logs)
app.command()(deploy_apply.delete)
app.command()(deploy_watch.doctor)
