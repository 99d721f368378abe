"""Commands of `ft2 nsq`."""

import typer

app = typer.Typer(help="Build, check and publish preference data.", no_args_is_help=True)
