"""Numbers and verdicts in words."""

import pytest

from kaizen_dist.common.formatting import SPACE, duration, listing, number, percent
from kaizen_dist.report import compare
from kaizen_dist.report.verdict import chance_over_tasks, verdict
from kaizen_dist.runs import facts
from kaizen_dist.runs.reader import load_run


def plain(text):
    return text.replace(SPACE, " ")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.4831, "48.3 %"), (0.0, "0.0 %"), (1.0, "100.0 %"), (-0.012, "−1.2 %"), (None, "–")],
)
def test_percent(value, text):
    assert plain(percent(value)) == text


def test_what_rounds_to_zero_has_no_sign():
    assert number(-0.0001, 2) == "0.00"
    assert number(-1234.5, 1) == "−1,234.5"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (0.2, "0 s"),
        (59.4, "59 s"),
        (60, "1 min"),
        (341.2, "5 min 41 s"),
        (3600 + 59, "1 h"),
        (3 * 3600 + 720, "3 h 12 min"),
        (51 * 3600, "2 d 3 h"),
    ],
)
def test_duration(seconds, text):
    assert plain(duration(seconds)) == text


def test_listing():
    assert listing([]) == ""
    assert listing(["a"]) == "a"
    assert listing(["a", "b", "c"]) == "a, b and c"


def test_verdict_of_a_whole_run(make_run):
    run = load_run(make_run(final_accuracy=0.483, forgetting=0.118))
    assert plain(verdict(run)) == (
        "After 5 tasks the model names 48 % of images right, on average over the tasks seen so "
        "far; it has forgotten 12 points. Guessing would get 10 %."
    )


def test_verdict_of_one_task_speaks_of_no_forgetting(make_run):
    run = load_run(make_run(tasks=1, final_accuracy=0.9, classes=["a", "b"]))
    assert plain(verdict(run)) == (
        "After 1 task the model names 90 % of images right. Guessing would get 50 %."
    )


@pytest.mark.parametrize(
    ("forgetting", "said"),
    [
        (-0.03, "it has gained 3 points over its former best"),
        (0.011, "it has forgotten 1 point."),
        (0.001, "forgotten next to nothing"),
    ],
)
def test_verdict_on_forgetting(make_run, forgetting, said):
    assert said in verdict(load_run(make_run(forgetting=forgetting)))


def test_verdict_before_the_first_task_and_without_a_classifier(make_run):
    assert verdict(load_run(make_run("early", done=0))) == "No task is finished yet."
    none = {"final_accuracy": None, "classifier": False, "knn": [[0.6]], "accuracy": [[None]]}
    run = load_run(make_run("features", tasks=1, done=1, **none))
    assert "name it right 60 % of the time" in plain(verdict(run))


def test_chance_counts_a_class_once_when_domains_share_it(make_run):
    run = load_run(make_run(tasks=2, task_classes=[["cat", "dog"], ["cat", "dog"]]))
    assert chance_over_tasks(run) == [0.5, 0.5]


def test_comparison_names_the_leader(make_run):
    runs = [
        load_run(make_run("none", final_accuracy=0.19)),
        load_run(make_run("kaizen", final_accuracy=0.48)),
    ]
    assert plain(compare.verdict(runs, ["none", "kaizen"])) == (
        "After 5 tasks “kaizen” is ahead: it names 48 % of images right, on average over the "
        "tasks, where “none” names 19 %."
    )


def test_what_does_not_compare_is_not_compared(make_run):
    whole, half = load_run(make_run("whole")), load_run(make_run("half", done=2))
    other = load_run(make_run("other", fingerprint="sha256:beef"))
    assert "learnt 2 to 5 tasks" in compare.verdict([whole, half], ["whole", "half"])
    assert "different streams" in compare.verdict([whole, other], ["whole", "other"])
    for runs in ([whole, half], [whole, other]):
        assert not any(best for column in compare.compared(runs) for best in column.best)


def test_leaders_are_marked_lowest_forgetting_first(make_run):
    a = load_run(make_run("a", final_accuracy=0.5, forgetting=0.3, forward_transfer=None))
    b = load_run(make_run("b", final_accuracy=0.4, forgetting=0.1, forward_transfer=0.2))
    best = {column.short: column.best for column in compare.compared([a, b])}
    assert best["FA"] == [True, False]
    assert best["F"] == [False, True]
    assert best["FT"] == [False, False]  # one of them was not measured
    assert best["images/s"] == [False, False]


def test_differences_put_what_is_computed_first(make_run):
    a = load_run(make_run("a", config={"log": {"every_steps": 5}}))
    b = load_run(make_run("b", config={"optim": {"lr": 1.0000001, "warmup_epochs": 2}}))
    rows = [(d.key, d.values) for d in compare.differences([a, b])]
    assert rows == [("optim.lr", ["1.0", "1.0000001"]), ("log.every_steps", ["5", "10"])]


def test_names_are_told_apart_by_their_parents(tmp_path, make_run):
    runs = [load_run(make_run(name)) for name in ("x/run", "y/run", "z")]
    assert compare.names(runs) == ["x/run", "y/run", "z"]


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("digits", "digits"),
        ("folder:/home/me/flowers/", "flowers"),
        ("domains:real", "real"),
        ("torchvision:CIFAR100:/data", "CIFAR100"),
    ],
)
def test_a_source_is_named_without_its_path(make_run, source, shown):
    run = load_run(make_run())
    stream = run.results.stream.model_copy(update={"source": source})
    assert facts.source(run.results.model_copy(update={"stream": stream})) == shown
