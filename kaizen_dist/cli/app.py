"""The command itself, and the arguments that several verbs share."""

from pathlib import Path
from typing import Annotated, Final

import typer

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Continual self-supervised learning with continual fine-tuning, distributed (Kaizen).",
)

ConfigFile = Annotated[Path, typer.Argument(help="A YAML file, e.g. configs/digits.yaml.")]
StreamFolder = Annotated[Path, typer.Argument(help="A folder made by `kaizen-dist prepare`.")]
STREAM_PLACE: Final = (
    "A folder made by `kaizen-dist prepare`, or the URL of one: http(s)://, s3://, ..."
)
Overrides = Annotated[
    list[str] | None, typer.Argument(help="section.key=value ...", show_default=False)
]
Procs = Annotated[int, typer.Option(min=1, help="Start so many ranks on this machine.")]
