"""The page of an evaluation: complete, self-contained, safe with hostile names."""

import csv
import dataclasses
import io

import pytest
from PIL import Image
from test_browser import BROWSER, faults_of
from test_page import KNOWN, Page

from kaizen_dist.models.evaluate import Evaluation
from kaizen_dist.models.visualise import Example, Visualisation
from kaizen_dist.report.evaluate_page import write_evaluation_page

HOSTILE = '</script><img src=x onerror="alert(1)">'


def image(level: int) -> bytes:
    encoded = io.BytesIO()
    Image.new("RGB", (300, 200), (level, 10, 30)).save(encoded, "JPEG")
    return encoded.getvalue()


@pytest.fixture
def found() -> Evaluation:
    wrong = Example(image(20), f"{HOSTILE}.jpg", "cat", HOSTILE, None)
    return Evaluation(
        run="runs/a", task=1, stream="streams/s", own_stream=True, probe="knn", images=10,
        accuracy=0.7, ece=None, tasks={0: 0.5, 1: 0.9}, classes=["cat", "dog", HOSTILE],
        per_class=[0.75, 2 / 3, None], confusion=[[3, 0, 1], [2, 4, 0], [0, 0, 0]],
        visualisation=Visualisation(
            points=[(0.0, 1.0), (2.0, -1.0), (0.5, 0.5)], tasks=[0, 0, 1], explained=(0.5, 0.25),
            right=[Example(image(200), "train/cat/7.jpg", "cat", "cat", 0.93)], wrong=[wrong],
        ),
        drift={0: {0: 0.5, 1: 0.75}},
    )  # fmt: skip


def test_the_page_is_whole_and_needs_nothing_but_itself(found, tmp_path):
    page = Page(write_evaluation_page(found, tmp_path / "eval.html"))
    used = {element["tag"] for element in page.elements}
    assert used <= KNOWN | {"img", "a"}
    images = [element["src"] for element in page.elements if element["tag"] == "img"]
    assert len(images) == 2
    assert all(source.startswith("data:image/png;base64,") for source in images)
    assert "onerror" not in {name for element in page.elements for name in element}
    text = " ".join(element["text"] for element in page.elements)
    for said in (
        "70.0",
        "0.750",
        "93",
        f"{HOSTILE}, not cat",
        f"{HOSTILE}.jpg",
        "train/cat/7.jpg",
        "hold\n75",
    ):
        assert said in text
    links = [element["href"] for element in page.elements if element["tag"] == "a"]
    assert links
    assert all((tmp_path / link).is_file() for link in links)


def test_figures_beside_it_hold_the_numbers(found, tmp_path):
    write_evaluation_page(found, tmp_path / "eval.html")
    folder = tmp_path / "eval-figures"
    table = list(csv.reader((folder / "confusion.csv").open()))
    assert table[0] == ["label", "cat", "dog", HOSTILE]
    assert table[2] == ["dog", "2", "4", "0"]
    assert list(csv.reader((folder / "features.csv").open()))[3] == ["2", "0.5", "0.5"]
    for name in ("confusion.png", "features.png"):
        with Image.open(folder / name) as picture:
            assert picture.size == (1024, 640)


def test_many_classes_are_a_list_of_confusions(found, tmp_path):
    names = [f"class {i}" for i in range(30)]
    counts = [[int(i == j) for j in range(30)] for i in range(30)]
    counts[3][7] = 9
    many = dataclasses.replace(found, classes=names, per_class=[0.5] * 30, confusion=counts)
    page = Page(write_evaluation_page(many, tmp_path / "eval.html"))
    cells = [element["text"] for element in page.elements if element["tag"] in ("th", "td")]
    place = cells.index("class 3", cells.index("how many"))
    assert cells[place : place + 3] == ["class 3", "class 7", "9"]


def test_a_task_without_a_point_on_the_plane_and_a_folder_for_a_page(found, tmp_path):
    changed = dataclasses.replace(found.visualisation, tasks=[0, 0, 0])
    page = write_evaluation_page(dataclasses.replace(found, visualisation=changed), tmp_path)
    assert page == tmp_path / "eval.html"
    assert "task 2" in page.read_text()


@pytest.mark.skipif(BROWSER is None, reason="no browser installed")
def test_in_a_browser(found, tmp_path):
    page = write_evaluation_page(found, tmp_path / "eval.html").read_text()
    assert faults_of(page, tmp_path) == []
