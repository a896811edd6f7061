"""The demo on 1,797 embedded images of digits: prepare, train, report."""

import time
from pathlib import Path

from kaizen_dist.common.console import PlainConsole
from kaizen_dist.distributed.spawn import launch, refuse_ranks_in_a_rank
from kaizen_dist.report.page import write_report
from kaizen_dist.report.table import summary_table
from kaizen_dist.runs.reader import load_run
from kaizen_dist.stream.prepare import prepare


def run_demo(out: Path, config: Path, procs: int) -> int:
    """Leave a stream and a finished run in `out`; the exit code of the training."""
    refuse_ranks_in_a_rank(procs)
    console = PlainConsole()
    started = time.monotonic()
    stream, run = out / "stream", out / "run"
    console.print("1/3 Cut 1,797 images of handwritten digits into 5 tasks of 2 classes")
    prepare("digits", stream, tasks=5, seed=5)
    console.print(f"2/3 Learn task after task on {procs} processes")
    arguments = ["train", str(config), "--stream", str(stream), "--out", str(run), "--no-summary"]
    code = launch(arguments, procs)
    if code:
        return code
    console.print("3/3 Draw what it remembers")
    page = write_report([run], None).resolve()
    console.print(f"\nThe report: {page}\n{time.monotonic() - started:.0f} s in all\n")
    console.print(summary_table([load_run(run)]))
    return 0
