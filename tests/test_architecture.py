"""The house: imports one way, small modules, one class a name, and a map that agrees with it."""

import ast
import collections
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "kaizen_dist"
MODULES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for file in sorted(PACKAGE.rglob("*.py"))
}
MODULE_LINES, FUNCTION_LINES = 300, 60


def room_of(module: str) -> str:
    return [*module.split("."), ""][1]


def imported(module: str) -> set[str]:
    """The modules of the package that a module imports, also where only types need them."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            while name and name not in MODULES:
                name = name.rpartition(".")[0]
            found.add(name)
    return found - {"", "kaizen_dist", module}


GRAPH = {module: imported(module) for module in MODULES}


def circle(graph: dict[str, set[str]]) -> list[str]:
    """What is left when everything that imports nothing left is taken away, again and again."""
    left = {name: set(others) for name, others in graph.items()}
    while free := [name for name, others in left.items() if not others & left.keys()]:
        for name in free:
            del left[name]
    return sorted(left)


def test_a_circle_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["a", "b", "c"]


def test_no_circle_of_files():
    assert circle(GRAPH) == []


def test_no_circle_of_rooms():
    rooms: dict[str, set[str]] = collections.defaultdict(set)
    for module, others in GRAPH.items():
        rooms[room_of(module)] |= {room_of(o) for o in others} - {room_of(module)}
    assert circle(rooms) == []


def test_modules_and_functions_are_short():
    long = []
    for module, file in MODULES.items():
        text = file.read_text()
        long += [module] if len(text.splitlines()) > MODULE_LINES else []
        for node in ast.walk(ast.parse(text)):
            if (
                isinstance(node, ast.FunctionDef)
                and node.end_lineno - node.lineno >= FUNCTION_LINES
            ):
                long.append(f"{module}:{node.name}")
    assert long == []


def test_a_name_is_one_class():
    defined = collections.defaultdict(list)
    for module, file in MODULES.items():
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ClassDef):
                defined[node.name].append(module)
    assert {name: where for name, where in defined.items() if len(where) > 1} == {}


def test_the_map_has_every_room_and_module():
    text = (ROOT / "docs" / "architecture.md").read_text()
    tree = text.partition("## The house")[2].partition("```")[2].partition("```")[0]
    words = set(re.findall(r"\w+", tree))
    named = {part for module in MODULES for part in module.split(".")[1:]} - {"__main__"}
    assert named - words == set()
    drawn = (ROOT / "docs" / "pictures" / "rooms.svg").read_text()
    rooms = {room_of(module) for module in MODULES if MODULES[module].parent != PACKAGE}
    assert {name for name in rooms if f">{name}<" not in drawn} == set()


def test_the_pages_name_modules_that_there_are():
    rooms = "|".join({room_of(module) for module in MODULES} - {"", "runs", "models"})
    wrong = [
        f"{page.name}: {named}"
        for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
        for named in re.findall(rf"`((?:{rooms})/[a-z_/]+?)(?:\.py)?`", page.read_text())
        if not (PACKAGE / named).is_dir() and not (PACKAGE / f"{named}.py").exists()
    ]
    tests = [
        f"{page.name}: {named}"
        for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
        for named in re.findall(r"tests/[a-z_/]+\.py", page.read_text())
        if not (ROOT / named).exists()
    ]
    assert wrong + tests == []


def test_the_picture_has_every_room_above_what_it_imports():
    """Rooms on one floor: those around the house, of which some import others."""
    drawn = (ROOT / "docs" / "pictures" / "rooms.svg").read_text()
    height = {
        n: int(y) for y, n in re.findall(r'class="name" x="\d+" y="(\d+)"[^>]*>(\w+)<', drawn)
    }
    for module, others in GRAPH.items():
        for other in others:
            here, there = room_of(module), room_of(other)
            if here in height and there in height:
                assert height[here] <= height[there], (module, other)


def test_the_readme_has_every_folder_page_and_tool():
    tree = (ROOT / "README.md").read_text().partition("## Where things are")[2].split("```")[1]
    listed = set(re.findall(r"[\w.]+", tree))
    folders = ("kaizen_dist", "configs", "docs", "slurm", "tests", "tools")
    there = {file.stem for name in ("docs", "tools") for file in (ROOT / name).iterdir()}
    assert (there | set(folders)) - listed - {"pictures"} == set()
