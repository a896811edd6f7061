"""The page: complete, self-contained, true to its inputs, and safe with hostile texts."""

import json
import re
from html.parser import HTMLParser

import pytest

from kaizen_dist.common.errors import DataError, UsageError, WriteError
from kaizen_dist.report.page import write_report

VOID = {"meta", "br", "hr", "img", "input", "link", "source", "base", "embed", "wbr", "track"}
KNOWN = {
    *("html", "head", "meta", "title", "style", "body", "main", "header", "footer", "section"),
    *("div", "p", "h1", "h2", "b", "i", "em", "small", "span", "abbr", "code", "pre"),
    *("ul", "li", "dl", "dt", "dd", "figure", "figcaption", "details", "summary"),
    *("table", "caption", "thead", "tbody", "tfoot", "tr", "th", "td"),
    *("svg", "g", "path", "desc", "defs", "use", "text", "clippath", "rect"),
}
"""All that the page is made of: no link, script, img, iframe or object."""


class Page(HTMLParser):
    """Every element with its attributes and text, and whether the tags nest."""

    def __init__(self, path):
        super().__init__(convert_charrefs=True)
        self.html = path.read_text(encoding="utf-8")
        self.open, self.elements, self.style = [], [], ""
        self.feed(self.html)
        self.close()
        assert self.open == [], "elements left open"

    def handle_starttag(self, tag, attributes):
        element = {"tag": tag, "text": "", **dict(attributes)}
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attributes):
        self.elements.append({"tag": tag, "text": "", **dict(attributes)})

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop()["tag"] == tag, f"</{tag}> closes another element"

    def handle_data(self, text):
        for element in self.open:
            element["text"] += text

    def all(self, tag, of_class=""):
        return [
            e
            for e in self.elements
            if e["tag"] == tag and (not of_class or of_class in e.get("class", "").split())
        ]

    def texts(self, tag, of_class=""):
        return [tidy(e["text"]) for e in self.all(tag, of_class)]


def tidy(text):
    return " ".join(text.replace("\u202f", " ").split())


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


@pytest.fixture
def three(make_run):
    none = {"distill": {"features": False, "classifier": False}, "replay": {"fraction": 0.0}}
    return [
        make_run("kaizen"),
        make_run("no-distill", keeps=0.3, seed=1, config=none),
        make_run("half", keeps=0.7, seed=2, done=3),
    ]


def test_the_page_of_a_run_says_what_its_results_say(make_run):
    folder = make_run()
    results = results_of(folder)
    out = write_report([folder])
    assert out == folder / "report.html"
    page = Page(out)
    assert page.texts("h1") == ["BYOL on digits"]
    figures = [
        f"{100 * results['final_accuracy']:.1f} %",
        f"{100 * results['continual_accuracy']:.1f} %",
        f"{100 * results['forgetting']:.1f} points",
        f"{100 * results['forward_transfer']:.1f} points",
    ]
    assert page.texts("p", "value") == figures
    assert f"{100 * results['final_accuracy_weighted']:.1f} % weighted by images" in tidy(page.html)
    measured = [
        value
        for name in ("accuracy", "knn")
        for row in results[name]
        for value in row
        if value is not None
    ]
    assert page.texts("td", "cell") == [f"{100 * value:.0f}" for value in measured]
    hints = [tidy(cell["title"]).rpartition(": ")[2] for cell in page.all("td", "cell")]
    assert hints == [f"{100 * value:.1f} %" for value in measured]
    assert len(page.all("td", "void")) == 2 * 10
    for fact in (results["config_sha256"], results["state_sha256"], "413 images per second"):
        assert fact in page.html
    assert (folder / "config.yaml").read_text().strip() == page.all("pre")[0]["text"].strip()


def test_heat_map_rows_and_tasks_are_in_order(make_run):
    folder = make_run()
    results = results_of(folder)
    page = Page(write_report([folder]))
    first = [tidy(cell["title"]) for cell in page.all("td", "cell")[:15]]
    assert first == [
        f"After task {t + 1}, on task {i + 1}: {100 * results['accuracy'][t][i]:.1f} %"
        for t in range(5)
        for i in range(t + 1)
    ]
    classes = page.texts("td", "classes")
    assert classes == [", ".join(names) for names in results["task_classes"]]


def test_not_measured_is_a_dash_and_never_zero(make_run):
    folder = make_run(tasks=1, rows_per_task=1)
    page = Page(write_report([folder]))
    assert page.texts("p", "value")[2:] == ["–", "–"]
    assert page.texts("p", "meaning")[2].endswith("Not measured.")


def test_the_loss_and_its_terms_are_drawn_and_absent_ones_named(make_run):
    none = {"distill": {"features": False, "classifier": False}}
    page = Page(write_report([make_run(config=none)]))
    titles = page.texts("figcaption")
    assert any(title.startswith("Loss") for title in titles)
    assert any(title.startswith("Learn the labels") for title in titles)
    assert not any(title.startswith("Keep the features") for title in titles)
    assert "Zero throughout: keep the features and keep the classifier." in page.texts("p")
    lines = [e for e in page.all("path") if "stroke: var(--" in e.get("style", "")]
    assert len([e for e in lines if e["d"].count("L") > 5]) >= 6


def test_every_chart_can_be_read_aloud(three):
    for folders in (three[:1], three):
        page = Page(write_report(folders, three[0] / "read.html"))
        charts = [e for e in page.all("svg") if e.get("role") == "img"]
        assert len(charts) >= 8
        ids = {e["id"]: e for e in page.elements if "id" in e}
        assert len(ids) == len([e for e in page.elements if "id" in e]), "an id is used twice"
        for chart in charts:
            title, description = (ids[name] for name in chart["aria-labelledby"].split())
            assert title["text"]
            assert "at the end" in description["text"]
        for table in page.all("table", "matrix"):
            assert "accuracy in per cent" in table["text"]


def test_several_runs_side_by_side(three, tmp_path):
    page = Page(write_report(three, tmp_path / "all.html"))
    assert page.texts("h1") == ["3 runs on digits"]
    body = " ".join(page.texts("table", "compare"))
    for folder in three:
        results = results_of(folder)
        assert f"{folder.name} {len(results['accuracy'])}/5" in body
        assert f"{100 * results['final_accuracy']:.1f} %" in body
        assert f"{100 * results['continual_accuracy']:.1f} %" in body
        assert f"{100 * results['forgetting']:.1f}" in body
    assert page.texts("p", "notice") == ["“half” is not finished: 3 of 5 tasks measured."]
    settings = " ".join(page.texts("table", "settings"))
    assert "distill.features true false true" in settings
    assert "replay.fraction 0.01 0.0 0.01" in settings
    assert len(page.all("table", "matrix")) == 3
    assert len(page.all("pre")) == 3


HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(1)></td></pre></style>{{7*7}}&amp;"


def test_hostile_texts_stay_texts(make_run):
    name = HOSTILE.replace("/", "∕")
    folder = make_run(
        name,
        classes=[HOSTILE + str(i) for i in range(10)],
        config={"method": HOSTILE, "ssl": {"note": HOSTILE}},
        state_sha256=HOSTILE,
    )
    results = results_of(folder)
    stream = results["stream"] | {"source": HOSTILE, "path": HOSTILE, "scenario": HOSTILE}
    (folder / "results.json").write_text(json.dumps(results | {"stream": stream}))
    other = make_run("other", seed=1)
    for folders in ([folder], [folder, other]):
        page = Page(write_report(folders, folder / "page.html"))
        assert {e["tag"] for e in page.elements} <= KNOWN
        assert not [k for e in page.elements for k in e if k.startswith("on")]
        assert any(name in e["text"] for e in page.all("b") + page.all("th"))
        assert "49" not in page.texts("h1")[0]
    single = Page(write_report([folder]))
    assert HOSTILE + "3" in single.texts("td", "classes")[1]
    assert HOSTILE in single.all("pre")[0]["text"].replace("''", "'")


def test_nothing_is_fetched(three, tmp_path):
    for folders in (three[:1], three):
        page = Page(write_report(folders, tmp_path / "page.html"))
        assert {e["tag"] for e in page.elements} <= KNOWN
        fetching = {"src", "href", "xlink:href", "srcset", "data", "action", "poster", "background"}
        used = [(e["tag"], k, e[k]) for e in page.elements for k in e if k in fetching]
        ids = {e.get("id") for e in page.elements}
        # A dot of a chart refers to the shape of its dots, within the page.
        assert {(tag, key) for tag, key, _ in used} == {("use", "href")}
        assert all(place[0] == "#" and place[1:] in ids for *_, place in used)
        clips = [e["clip-path"] for e in page.elements if "clip-path" in e]
        assert all(re.fullmatch(r"url\(#(\w+)\)", clip)[1] in ids for clip in clips)
        css = "".join(page.texts("style")) + "".join(e.get("style", "") for e in page.elements)
        assert not re.search(r"url\(|@import|@font-face|https?:", css)
        policy = [e["content"] for e in page.all("meta") if "http-equiv" in e]
        assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_a_run_without_a_classifier_shows_knn_instead(make_run):
    folder = make_run(
        accuracy=[[None] * 5] * 5,
        config={"classifier": {"enabled": False}, "distill": {"classifier": False}},
        final_accuracy=None,
        final_accuracy_weighted=None,
        continual_accuracy=None,
        forgetting=None,
    )
    page = Page(write_report([folder]))
    knn = results_of(folder)["knn"]
    assert [float(text) for text in page.texts("td", "cell")] == [
        round(100 * value) for row in knn for value in row if value is not None
    ]
    mean = sum(knn[-1]) / 5
    assert page.texts("p", "meaning")[0].endswith(f"By kNN: {100 * mean:.1f} %.")


def test_size_stays_small_for_long_runs(make_run):
    folder = make_run(tasks=20, rows_per_task=250)
    assert write_report([folder]).stat().st_size < 400_000


def test_where_it_is_written(three, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert write_report(three).resolve() == tmp_path / "report.html"
    folder = tmp_path / "pages"
    folder.mkdir()
    assert write_report(three[:1], folder) == folder / "report.html"
    fresh = tmp_path / "new" / "page.html"
    assert write_report(three[:1], fresh) == fresh
    assert not list(tmp_path.rglob(".*report*")), "a draft was left behind"


def test_what_cannot_be_done_is_said(three, tmp_path):
    with pytest.raises(UsageError, match="at least one"):
        write_report([])
    with pytest.raises(UsageError, match=r"named twice: .*kaizen"):
        write_report([three[0], three[0].parent / "half" / ".." / "kaizen"])
    with pytest.raises(DataError, match="no such folder"):
        write_report([tmp_path / "nowhere"])
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(WriteError, match="cannot write"):
        write_report(three[:1], blocked / "report.html")
