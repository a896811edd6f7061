"""Events that go on where a checkpoint stands, and the meter behind images per second."""

import json
import resource
import signal
import time

import pytest
import torch
from emulated_gpu import CUDA, EmulatedGpu
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kaizen_dist.common.errors import WriteError
from kaizen_dist.training.run_log import RunLog, StepMeter, keep_events


def rows(path):
    return [(r["task"], r["step"]) for r in map(json.loads, path.read_text().splitlines())]


@pytest.fixture
def events(tmp_path):
    path = tmp_path / "events.jsonl"
    lines = [{"task": t, "step": s, "loss": 1.0} for t in range(3) for s in range(4)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_rows_to_be_repeated_are_dropped(events):
    keep_events(events, (1, 2))
    assert rows(events) == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)]


def test_a_line_cut_short_by_a_kill_is_dropped(events):
    events.write_text(events.read_text()[:-10])
    keep_events(events, (9, 0))
    assert len(rows(events)) == 11


def test_a_journal_goes_on(events):
    log = RunLog(events.parent, active=True)
    with log.open(task=2, step=1):
        log.event({"task": 2, "step": 1, "loss": 0.5})
    assert rows(events)[-2:] == [(2, 0), (2, 1)]
    assert list((events.parent / "tensorboard").iterdir())


def steps_of(run, tag: str = "train/loss") -> list[int]:
    """As TensorBoard's own reader shows them."""
    reader = EventAccumulator(str(run / "tensorboard"))
    reader.Reload()
    return [e.step for e in reader.Scalars(tag)]


@pytest.mark.parametrize("resumed_at", [0, 1, 4])
def test_tensorboard_has_each_step_once_after_a_kill(tmp_path, resumed_at):
    """Also one before the first checkpoint, so that the run begins anew; and within a second."""
    for first, steps in ((0, range(6)), (resumed_at, range(resumed_at, 8))):
        log = RunLog(tmp_path, active=True)
        with log.open(0, first):
            for step in steps:
                log.event({"task": 0, "step": step, "loss": float(step)})
    assert steps_of(tmp_path) == list(range(1, 9))


def test_tensorboard_counts_the_steps_of_all_tasks(tmp_path):
    """Whatever the batch size was: it follows from events.jsonl, every third step of which is
    logged, and the last of a task."""
    for task in range(3):
        log = RunLog(tmp_path, active=True)
        with log.open(task, 0):
            log.scalar("final_accuracy", 0.5, task)
            for step in (0, 3, 4):
                log.event({"task": task, "step": step, "loss": 1.0, "time": 5.0})
    assert steps_of(tmp_path) == [1, 4, 5, 6, 9, 10, 11, 14, 15]
    assert steps_of(tmp_path, "tasks/final_accuracy") == [2], "the trainer repeats the others"


@pytest.mark.parametrize(
    "line", ["[]", "null", '{"task": "0", "step": 1}', '{"task": 0, "step": -1}', "[" * 10000]
)
def test_what_is_no_row_is_dropped(events, line):
    text = events.read_text()
    events.write_text(line + "\n" + text + text.splitlines()[3] + "\n")
    keep_events(events, (9, 0))
    assert events.read_text() == text


def test_links_in_a_run_folder_are_not_followed(tmp_path):
    """Neither that of the temporary file of old, nor that of the file itself."""
    theirs = tmp_path / "theirs"
    theirs.write_text("precious")
    run = tmp_path / "run"
    run.mkdir()
    (run / "events.jsonl").write_text('{"task": 0, "step": 0}\n')
    (run / ".events.jsonl.tmp").symlink_to(theirs)
    with RunLog(run, active=True).open(0, 0):
        pass
    assert theirs.read_text() == "precious"
    (run / "events.jsonl").unlink()
    (run / "events.jsonl").symlink_to(theirs)
    with pytest.raises(WriteError, match=r"events\.jsonl"), RunLog(run, active=True).open(0, 0):
        pass
    assert theirs.read_text() == "precious"


def small_files(size: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@pytest.mark.parametrize(("name", "row"), [("events.jsonl", 900), ("tensorboard", 100)])
def test_a_full_disk_is_a_write_error_that_names_the_file(tmp_path, name, row):
    """Of whichever is full first, and closing the files does not hide it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    log = RunLog(tmp_path, active=True)
    # Long in events.jsonl, or in TensorBoard.
    more = {"time": "x" * row} if row > 500 else {f"value{i}": 0.5 for i in range(5)}
    try:
        with pytest.raises(WriteError, match=name) as caught, log.open(0, 0):  # noqa: PT012
            small_files(4096)
            for step in range(100):
                log.event({"task": 0, "step": step, "loss": 0.5, **more})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(caught.value)


def test_names_of_others_are_neither_markup_nor_commands(tmp_path, capsys):
    log = RunLog(tmp_path, active=True)
    log.say("classes [/], \x1b[31m")
    log.say("[bold]x[/bold]")
    assert capsys.readouterr().err == "classes [/], \\x1b[31m\n[bold]x[/bold]\n"


def test_only_the_first_rank_writes(tmp_path):
    log = RunLog(tmp_path, active=False)
    with log.open(task=0, step=0):
        log.event({"task": 0, "step": 0})
        log.say("nothing")
        log.progress("nothing", 1, 2)
    assert list(tmp_path.iterdir()) == []


def test_the_meter_tells_rate_and_waiting(monkeypatch):
    clock = iter([0.0, 10.0, 13.0, 20.0, 20.0])
    monkeypatch.setattr("kaizen_dist.training.run_log.time.perf_counter", lambda: next(clock))
    meter = StepMeter(torch.device("cpu"))
    with meter.waiting():
        pass
    meter.images += 400
    assert meter.read() == (20.0, 0.15, 20.0)


def test_on_a_gpu_only_waiting_without_work_counts(monkeypatch):
    """A host that waits 3 s for every batch: beside work of 10 s, of 1 s, and of none."""
    gpu = EmulatedGpu(monkeypatch)
    meter, shares = StepMeter(CUDA), []
    for work in (10, 1, 0):
        gpu.queue(work)
        before = gpu.now
        with meter.waiting():
            gpu.host(3)
        assert gpu.now == before + 3, "the host has waited for the data alone"
        gpu.synchronize()
        _, share, seconds = meter.read()
        shares.append(share * seconds)
    assert shares == [0, 2, 3]


def test_a_batch_that_the_gpu_itself_has_to_wait_for_is_waited_for(monkeypatch):
    """The host has it at once, but its copy, on another stream, takes 2 s."""
    gpu = EmulatedGpu(monkeypatch)
    meter = StepMeter(CUDA)
    with meter.waiting():
        gpu.queue(2)  # the stream waits for the copy
    gpu.queue(6)
    gpu.synchronize()
    assert meter.read()[1:] == (0.25, 8)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_on_this_gpu_only_waiting_without_work_counts():
    """A tenth of a second of waiting, with none and with half a second of work queued before."""
    meter, shares = StepMeter(torch.device("cuda")), []
    for cycles in (0, 10**9, 0, 10**9):  # the first two warm up
        torch.cuda.synchronize()
        meter.restart()
        torch.cuda._sleep(cycles)
        with meter.waiting():
            time.sleep(0.1)
        torch.cuda.synchronize()
        shares.append(meter.read()[1])
    idle, busy = shares[2:]
    assert busy < 0.5 < idle
