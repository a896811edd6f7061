"""Loggers beside events.jsonl: W&B and MLflow (stand-ins for them), and those of other people."""

import json
import sys

import pytest

from kaizen_dist.common.errors import UsageError, WriteError
from kaizen_dist.config import validate
from kaizen_dist.training.loggers import LOGGERS, Loggers
from kaizen_dist.training.loggers.base import Logger
from kaizen_dist.training.run_log import RunLog

WANDB = """
import json, os, pathlib
LOG = pathlib.Path(os.environ["STAND_IN"])
def note(*what):
    with LOG.open("a") as file:
        file.write(json.dumps(what) + "\\n")
class util:
    @staticmethod
    def generate_id():
        return "id7"
class Run:
    def define_metric(self, *a, **k): pass
    def log(self, values, step=None): note("log", values, step)
    def finish(self): note("finish")
def init(**given):
    config = given.pop("config")
    note("init", given, config["method"])
    return Run()
"""
MLFLOW = """
import json, os, pathlib
from types import SimpleNamespace as Names
LOG = pathlib.Path(os.environ["STAND_IN"])
def note(*what):
    with LOG.open("a") as file:
        file.write(json.dumps(what) + "\\n")
def noted(kind):
    lines = LOG.read_text().splitlines() if LOG.exists() else []
    return [row for row in map(json.loads, lines) if row[0] == kind]
class MlflowClient:
    def get_experiment_by_name(self, name): return None
    def create_experiment(self, name):
        note("experiment", name)
        return "e"
    def create_run(self, place, run_name):
        note("run", run_name)
        return Names(info=Names(run_id="r1"))
    def log_batch(self, run_id, metrics=(), params=()):
        assert len(params) <= 100
        if params:
            note("params", [list(p) for p in params])
        if metrics:
            note("metrics", run_id, [[m[0], m[1], m[3]] for m in metrics])
    def update_run(self, run_id, status): note("status", run_id, status)
    def get_metric_history(self, run_id, name):
        rows = [m for row in noted("metrics") for m in row[2] if m[0] == name]
        return [Names(step=m[2]) for m in rows]
    def set_terminated(self, run_id): note("end", run_id)
"""
ENTITIES = """
def Metric(*values): return values
def Param(*values): return values
"""


@pytest.fixture
def service(tmp_path, monkeypatch):
    """The stand-ins, and what was called on them."""
    (tmp_path / "wandb.py").write_text(WANDB)
    (tmp_path / "mlflow").mkdir()
    (tmp_path / "mlflow" / "__init__.py").write_text(MLFLOW)
    (tmp_path / "mlflow" / "entities.py").write_text(ENTITIES)
    log = tmp_path / "calls.jsonl"
    monkeypatch.setenv("STAND_IN", str(log))
    monkeypatch.syspath_prepend(tmp_path)
    for name in [m for m in sys.modules if m.split(".")[0] in ("wandb", "mlflow")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("wandb", "mlflow"):
        sys.modules.pop(f"kaizen_dist.training.loggers.{name}", None)
    yield lambda: [json.loads(line) for line in log.read_text().splitlines()]
    for name in ("wandb", "mlflow"):
        sys.modules.pop(f"kaizen_dist.training.loggers.{name}", None)
    for name in [m for m in sys.modules if m.split(".")[0] in ("wandb", "mlflow")]:
        sys.modules.pop(name)


def record(run, name, start, stop):
    """Rows of steps [start, stop) of task 1, of 3 steps a task, after a whole task 0."""
    run.mkdir(exist_ok=True)
    log = RunLog(run, True, validate({"log": {"to": [name]}}, "here"))
    first = start == 0
    with log.open(0 if first else 1, start):
        log.scalar("final_accuracy", 0.5, 0)
        for task, steps in ((0, range(3)), (1, range(start, stop))):
            for step in steps if first or task == 1 else ():
                row = {"task": task, "step": step, "epoch": 0, "loss": float(step), "time": 1.0}
                log.event(row)


def test_a_requeued_run_goes_on_in_the_same_wandb_run(tmp_path, service):
    run = tmp_path / "run"
    record(run, "wandb", 0, 2)
    record(run, "wandb", 1, 3)  # killed, and back at step 1
    calls = service()
    begun = [row[1:] for row in calls if row[0] == "init"]
    assert [given["id"] for given, _ in begun] == ["id7", "id7"]
    assert (run / "loggers" / "wandb.id").read_text() == "id7"
    given, method = begun[1]
    assert (given["resume"], given["name"], given["project"]) == ("allow", "run", "kaizen-dist")
    assert method == "byol"
    steps = [row[2] for row in calls if row[0] == "log" and row[2] is not None]
    # W&B drops 5 the second time; rows that were kept are not sent again.
    assert steps == [1, 2, 3, 4, 5, 5, 6]
    assert [row for row in calls if row[0] == "log" and row[2] is None] == [
        ["log", {"tasks/final_accuracy": 0.5, "task": 0}, None]
    ], "a number from before the resume is not sent again"
    assert ["log", {"train/loss": 1.0}, 5] in calls
    assert calls[-1] == ["finish"]


def test_a_requeued_run_goes_on_in_the_same_mlflow_run(tmp_path, service):
    run = tmp_path / "run"
    record(run, "mlflow", 0, 2)
    record(run, "mlflow", 1, 3)
    calls = service()
    assert [row[1] for row in calls if row[0] == "run"] == ["run"]
    assert (run / "loggers" / "mlflow.id").read_text() == "r1"
    params = dict(p for row in calls if row[0] == "params" for p in row[1])
    assert params["train.batch_size"] == "256"
    steps = [m[2] for row in calls if row[0] == "metrics" for m in row[2] if m[0] == "train/loss"]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert calls[-1] == ["end", "r1"]


def test_a_service_that_is_not_installed_is_named_before_anything_is_written(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    sys.modules.pop("kaizen_dist.training.loggers.wandb", None)
    with pytest.raises(UsageError, match=r"log\.to: 'wandb'.*pip install 'kaizen-dist\[wandb\]'"):
        Loggers(validate({"log": {"to": ["wandb"]}}, "here"), print)


class Failing(Logger):
    """Fails at its second row."""

    seen = 0

    def row(self, row, step):
        Failing.seen += 1
        if Failing.seen == 2:
            raise ConnectionError("no route")


def test_a_logger_that_fails_is_dropped_with_one_warning(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(LOGGERS.__class__, "find", lambda self, name: Failing)
    log = RunLog(tmp_path, True, validate({"log": {"to": ["a"]}}, "here"))
    with log.open(0, 0):
        for step in range(5):
            log.event({"task": 0, "step": step, "loss": 1.0})
            log.scalar("forgetting", 0.1, 0)
    said = capsys.readouterr().err
    assert said.count("log.to: a has failed") == 1
    assert "ConnectionError: no route; the training goes on" in said
    assert Failing.seen == 2
    assert len((tmp_path / "events.jsonl").read_text().splitlines()) == 5


def test_no_logger_is_one_too(tmp_path):
    log = RunLog(tmp_path, True, validate({"log": {"to": []}}, "here"))
    with log.open(0, 0):
        log.event({"task": 0, "step": 0, "loss": 1.0})
    assert [path.name for path in tmp_path.iterdir()] == ["events.jsonl"]


def test_a_disk_that_is_full_still_ends_the_run(tmp_path, monkeypatch):
    def full(self, row, step):
        raise WriteError("no space")

    monkeypatch.setattr(LOGGERS.find("tensorboard"), "row", full)
    log = RunLog(tmp_path, True)
    with pytest.raises(WriteError), log.open(0, 0):
        log.event({"task": 0, "step": 0, "loss": 1.0})
