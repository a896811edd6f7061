"""Reading a run's folder back: whole, unfinished, damaged."""

import json

import numpy as np
import pytest

from kaizen_dist.common.errors import DataError
from kaizen_dist.learner.terms import BEYOND
from kaizen_dist.runs.reader import load_run
from kaizen_dist.runs.results import Results as WrittenResults


def change(folder, **fields):
    path = folder / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def append(folder, text):
    with (folder / "events.jsonl").open("a") as file:
        file.write(text)


def test_reads_what_was_written(make_run):
    folder = make_run("kaizen", rows_per_task=4)
    written = json.loads((folder / "results.json").read_text())
    run = load_run(folder)
    assert run.name == "kaizen"
    assert run.tasks_done == 5
    assert json.loads(run.results.model_dump_json()) == written
    assert run.config["train"]["epochs"] == 20
    rows = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert run.events.task.tolist() == [row["task"] for row in rows]
    assert run.events.step.tolist() == [row["step"] for row in rows]
    np.testing.assert_array_equal(run.events.columns["loss"], [row["loss"] for row in rows])


def test_rows_of_older_versions_lack_the_terms_that_came_later(make_run):
    folder = make_run(rows_per_task=3)
    path = folder / "events.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    older = [{k: v for k, v in row.items() if k not in BEYOND} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in older))
    events = load_run(folder).events
    assert not any(events.is_on(term) for term in BEYOND)
    np.testing.assert_array_equal(events.columns["ssl"], [row["ssl"] for row in rows])


def test_an_unfinished_run_is_read_as_far_as_it_got(make_run):
    run = load_run(make_run(done=2))
    assert not run.results.finished
    assert run.tasks_done == 2
    assert run.results.stream.tasks == 5


def test_a_half_written_last_line_is_left_out(make_run):
    folder = make_run(rows_per_task=3)
    append(folder, '{"task": 4, "epoch": 1, "st')
    assert len(load_run(folder).events) == 15


def test_a_broken_line_in_the_middle_is_named(make_run):
    folder = make_run(rows_per_task=3)
    path = folder / "events.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], '{"task": 4, "epo', *lines[2:], ""]))
    with pytest.raises(DataError, match=r"events\.jsonl, line 2: malformed"):
        load_run(folder)


def test_a_whole_last_row_with_a_wrong_field_is_no_half_line(make_run):
    folder = make_run(rows_per_task=3)
    row = json.loads((folder / "events.jsonl").read_text().splitlines()[0]) | {"loss": "high"}
    append(folder, json.dumps(row))
    with pytest.raises(DataError, match=r"line 16: malformed.*\n.*loss"):
        load_run(folder)


def test_a_line_longer_than_any_row_is_not_taken_for_the_end(make_run):
    folder = make_run(rows_per_task=3)
    path = folder / "events.jsonl"
    lines = path.read_text().splitlines()
    lines[1] = lines[1].replace("{", "{" + " " * (1 << 20), 1)
    path.write_text("\n".join([*lines, ""]))
    with pytest.raises(DataError, match=r"events\.jsonl, line \d+: malformed"):
        load_run(folder)


def test_a_step_logged_again_after_a_resume_counts_once(make_run):
    folder = make_run(tasks=1, rows_per_task=3)
    rows = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    append(folder, "".join(json.dumps(row | {"loss": 7.0}) + "\n" for row in rows[1:]))
    events = load_run(folder).events
    assert events.step.tolist() == [0, 10, 20]
    assert events.columns["loss"].tolist() == [rows[0]["loss"], 7.0, 7.0]


def test_null_terms_are_off(make_run):
    folder = make_run(tasks=2, rows_per_task=2)
    rows = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    for row in rows:
        row["kd_features"] = None
        row["kd_classifier"] = 0.0
    (folder / "events.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    events = load_run(folder).events
    assert not events.is_on("kd_features")
    assert not events.is_on("kd_classifier")
    assert events.is_on("classifier")


def test_no_row_logged_yet(make_run):
    assert len(load_run(make_run(done=0, rows_per_task=0)).events) == 0


@pytest.mark.parametrize("name", ["config.yaml", "results.json", "events.jsonl"])
def test_a_missing_file_is_named_with_the_cure(make_run, name):
    folder = make_run(rows_per_task=1)
    (folder / name).unlink()
    with pytest.raises(DataError, match=rf"{name}: missing; \w+"):
        load_run(folder)


def test_a_folder_that_is_none(tmp_path):
    with pytest.raises(DataError, match="nowhere: no such folder"):
        load_run(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"final_accuracy": 48.3}, "final_accuracy: .*less than or equal to 1"),
        ({"accuracy": [[48.3]]}, r"accuracy\.0\.0: "),
        ({"accuracy": "none"}, "accuracy: "),
        ({"finished": "yes"}, "finished: "),
        ({"accuracy": [[0.5], [0.5]], "knn": [[0.5], [0.5]]}, "accuracy, row 1: 1 columns"),
        ({"knn": [[0.5]]}, "knn has 1 rows"),
        ({"forgetting": float("nan")}, "forgetting: "),
    ],
)
def test_malformed_results_name_the_field(make_run, fields, message):
    folder = make_run(rows_per_task=1)
    change(folder, **fields)
    with pytest.raises(DataError, match=rf"results\.json: malformed[^\n]*\n[^$]*{message}"):
        load_run(folder)


def test_every_fault_is_listed(make_run):
    folder = make_run(rows_per_task=1)
    path = folder / "results.json"
    results = json.loads(path.read_text())
    del results["method"], results["stream"]["scenario"]
    path.write_text(json.dumps(results | {"seed": "one"}))
    with pytest.raises(DataError) as error:
        load_run(folder)
    for field in ("method: ", "stream.scenario: ", "seed: "):
        assert field in str(error.value)


def test_truncated_results_and_broken_config(make_run):
    folder = make_run(rows_per_task=1)
    path = folder / "results.json"
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"results\.json: malformed"):
        load_run(folder)
    path.write_text(whole)
    for text, message in (
        ("a: [1", "not valid YAML"),
        ("- 1", "holds no settings"),
        ("", "no settings"),
    ):
        (folder / "config.yaml").write_text(text)
        with pytest.raises(DataError, match=rf"config\.yaml: .*{message}"):
            load_run(folder)
    (folder / "config.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"config\.yaml: cannot be read"):
        load_run(folder)


def test_config_is_never_executed(make_run):
    folder = make_run(rows_per_task=1)
    (folder / "config.yaml").write_text("a: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(DataError, match="not valid YAML"):
        load_run(folder)


def test_reads_what_the_trainer_writes(make_run):
    folder = make_run(rows_per_task=1)
    made_up = load_run(folder).results
    written = WrittenResults.model_validate_json((folder / "results.json").read_text())
    written.write(folder)
    assert load_run(folder).results == made_up
