"""Verbs about what a run has learnt: report, eval, export, predict."""

import json
from pathlib import Path
from typing import Annotated

import typer

from kaizen_dist.cli.app import STREAM_PLACE, app
from kaizen_dist.common.console import PlainConsole, ProgressBars, say
from kaizen_dist.common.errors import UsageError


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs.")],
    out: Annotated[
        Path | None, typer.Option(help="The page (RUN/report.html for a single run).")
    ] = None,
    markdown: Annotated[bool, typer.Option(help="Print the metrics as Markdown instead.")] = False,
) -> None:
    """Write one self-contained page about a run, or about several side by side.

    Example: kaizen-dist report runs/kaizen runs/no_distill --out compare.html
    """
    from kaizen_dist.report.page import write_report
    from kaizen_dist.report.table import markdown_table
    from kaizen_dist.runs.reader import load_run

    if markdown:
        say(markdown_table([load_run(run) for run in runs]), error=False, end="")
    else:
        say(write_report(runs, out), error=False)


@app.command("eval")
def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    task: Annotated[
        int | None, typer.Option(help="A finished task, from 0.", show_default="the last")
    ] = None,
    probe: Annotated[str, typer.Option(help="linear | knn | classifier")] = "classifier",
    stream: Annotated[
        str | None, typer.Option(help=STREAM_PLACE, show_default="the run's own")
    ] = None,
    page: Annotated[
        Path | None, typer.Option(help="Write a page of it too, and its figures beside it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Evaluate the model after a task: accuracy by task and class, confusion, calibration, drift.

    Also on a stream that it was not trained on. linear and knn learn from that stream's labels.

    Example: kaizen-dist eval runs/a --task 4 --probe linear --stream streams/other
    --page eval.html
    """
    from kaizen_dist.models.evaluate import PROBES
    from kaizen_dist.models.evaluate import evaluate as run_evaluate
    from kaizen_dist.report.evaluate_table import evaluation_tables

    chosen = next((name for name in PROBES if name == probe), None)
    if chosen is None:
        raise UsageError(f"--probe {probe}: one of {', '.join(PROBES)}")
    with ProgressBars() as bars:
        found = run_evaluate(run, task, chosen, stream, bars.show)
    if page is not None:
        from kaizen_dist.report.evaluate_page import write_evaluation_page

        say(write_evaluation_page(found, page))
    if as_json:
        print(json.dumps(found.to_json()))
    else:
        PlainConsole().print(*evaluation_tables(found), sep="\n")


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    task: Annotated[
        int | None, typer.Option(help="A finished task, from 0.", show_default="the last")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the model.", show_default="RUN/export/task-0t")
    ] = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="Write model.onnx too.")] = False,
) -> None:
    """Write the model of a finished task as plain files, with a card that says how to use them.

    Example: kaizen-dist export runs/a --task 2 --onnx
    """
    from kaizen_dist.models.export import export as run_export

    say(run_export(run, task, out, onnx), error=False)


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="A folder made by `kaizen-dist export`.")],
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of images.")],
    top: Annotated[int, typer.Option(min=1, help="Classes to name, most probable first.")] = 3,
    batch: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 32,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Name images: the most probable classes of each, of those the model has met.

    Example: kaizen-dist predict runs/a/export/task-04 photo.jpg folder/ --top 5
    """
    from kaizen_dist.models import predict as prediction
    from kaizen_dist.models.network import load_model

    found = prediction.images_at(images)
    answers = list(prediction.predict(load_model(model), found, top, batch))
    if as_json:
        print(json.dumps([answer.to_json() for answer in answers]))
    else:
        for answer in answers:
            if answer.problem is None:
                say(answer, error=False)
    prediction.raise_if_broken(answers)
