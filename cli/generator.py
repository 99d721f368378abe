"""Commands of `ft2 generator`."""

import typer

app = typer.Typer(help="Train and evaluate the base generator.", no_args_is_help=True)
