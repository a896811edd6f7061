"""The command itself, and the arguments that several verbs share."""

from pathlib import Path
from typing import Annotated, Final

import typer

from kaizen_dist.common.console import say

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Continual self-supervised learning with continual fine-tuning, distributed (Kaizen).",
)


def found(path: Path | None) -> Path | None:
    """The file at this path, or the shipped one of this name, with a message."""
    from kaizen_dist.config.shipped import find

    if path is not None and (there := find(path)) != path:
        say(f"{path}: not here, so the one that comes with kaizen_dist is taken: {there}")
        return there
    return path


ConfigFile = Annotated[
    Path,
    typer.Argument(callback=found, help="A YAML file, or the name of a shipped one: digits."),
]
StreamFolder = Annotated[Path, typer.Argument(help="A folder made by `kaizen-dist prepare`.")]
STREAM_PLACE: Final = (
    "A folder made by `kaizen-dist prepare`, or the URL of one: http(s)://, s3://, ..."
)
Overrides = Annotated[
    list[str] | None, typer.Argument(help="section.key=value ...", show_default=False)
]
Procs = Annotated[int, typer.Option(min=1, help="Start N ranks on this machine.")]
Until = Annotated[
    int | None, typer.Option(min=1, help="Stop after N tasks.", show_default="all of them")
]
