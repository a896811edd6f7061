"""What is asked of a cluster, as options of the verbs that put something on it.

Each is None where it is not given, and then the profile's; the defaults are those of
launch/resources.py.
"""

from pathlib import Path
from typing import Annotated

import typer

Profile = Annotated[
    Path | None, typer.Option(help="What is the same for all runs: slurm/profiles/*.yaml.")
]
GpusPerNode = Annotated[int | None, typer.Option(min=0, show_default="0")]
RanksPerNode = Annotated[
    int | None, typer.Option(min=1, show_default="one a GPU, or one a node without")
]
CpusPerTask = Annotated[
    int | None, typer.Option(min=1, help="CPU cores of a rank.", show_default="1")
]
Memory = Annotated[str | None, typer.Option(help="Memory of a node: 64G.")]
Name = Annotated[str | None, typer.Option()]
"""Of a partition, an account, ..."""
Container = Annotated[str | None, typer.Option(help="An image that the ranks run in.")]
