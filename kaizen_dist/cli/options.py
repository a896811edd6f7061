"""Options for the resources of a cluster, shared by the verbs that submit to one.

An option that is not given is None: the profile's value holds, or the default of
launch/resources.py.
"""

from pathlib import Path
from typing import Annotated

import typer

Nodes = Annotated[int | None, typer.Option(min=1, show_default="1")]
Profile = Annotated[
    Path | None, typer.Option(help="Values that all runs share: slurm/profiles/*.yaml.")
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
Container = Annotated[str | None, typer.Option(help="Image that the ranks run in.")]
Poll = Annotated[
    int, typer.Option(min=1, help="Seconds between two looks at the stream, with --follow.")
]
FollowPartition = Annotated[
    str | None, typer.Option(help="Of the job of one core that looks.", show_default="--partition")
]
Time = Annotated[
    str | None, typer.Option(help="Limit of a job; a run may take many.", show_default="24:00:00")
]
SignalSeconds = Annotated[
    int | None,
    typer.Option(min=10, help="Save and exit this long before the time limit.", show_default="120"),
]
Retries = Annotated[
    int | None, typer.Option(min=0, help="Attempts that may fail.", show_default="5")
]
