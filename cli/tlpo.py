"""Commands of `ft2 tlpo`."""

import typer

app = typer.Typer(help="Train experts and the fusion gate.", no_args_is_help=True)
