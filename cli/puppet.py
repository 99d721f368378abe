"""Commands of `ft2 puppet`."""

import typer

app = typer.Typer(help="Make clips with known driving curves and defects.", no_args_is_help=True)
