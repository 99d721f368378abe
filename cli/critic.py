"""Commands of `ft2 critic`."""

import typer

app = typer.Typer(help="Train, evaluate and use the critic.", no_args_is_help=True)
