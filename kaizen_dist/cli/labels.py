"""The verb `label`."""

import csv
import sys
from pathlib import Path
from typing import Annotated

import typer

from kaizen_dist.cli.app import StreamFolder, app
from kaizen_dist.common.console import say
from kaizen_dist.common.errors import UsageError
from kaizen_dist.common.formatting import plural


@app.command()
def label(
    stream: StreamFolder,
    table: Annotated[
        Path | None,
        typer.Argument(help="CSV or Parquet with the columns label, and id or name."),
    ] = None,
    new_classes: Annotated[
        bool, typer.Option("--new-classes", help="Labels may be names that no class has yet.")
    ] = False,
    list_images: Annotated[
        bool, typer.Option("--list", help="Write such a table of all images to standard output.")
    ] = False,
) -> None:
    """Set or correct labels of images that are in a stream already.

    An empty label takes the label of a training image away. What a training has learnt stays what
    it was: from its next task on replay, class means, kNN and evaluation know the new labels.

    Example: kaizen-dist label streams/animals labels.csv
    """
    from kaizen_dist.stream import add_labels
    from kaizen_dist.stream.manifest import Stream

    if list_images == (table is not None):
        raise UsageError("give a table of labels, or --list to write one")
    opened = Stream.open(stream)
    if table is None:
        write = csv.writer(sys.stdout, lineterminator="\n").writerow
        write(add_labels.ImageRow._fields)
        for image in add_labels.list_images(opened):
            write(image)
        return
    labelled = add_labels.label(stream, table, new_classes=new_classes)
    if labelled.given == opened.given:
        say(f"{stream} has these labels already; nothing to do", error=False)
        return
    late = labelled.manifest.labels[-1]
    new = f"; new classes: {', '.join(late.new_classes)}" if late.new_classes else ""
    say(
        f"{stream}: {plural(late.images, 'label')} in {plural(len(late.tasks), 'task')}{new}; "
        f"{labelled.manifest.counts.labelled:,} of {labelled.manifest.counts.train:,} training "
        "images are labelled",
        error=False,
    )
