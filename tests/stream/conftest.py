"""Small real images, laid out as a source's folder."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def write_image(path: Path, seed: int, size: tuple[int, int] = (12, 9)) -> None:
    """A noisy picture, another one for every seed, in the format that the name asks for."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def save_image():
    return write_image


@pytest.fixture
def make_folder(tmp_path):
    """make_folder({"train/cat": 7, ...}) fills so many images into each folder."""

    def make(counts: dict[str, int], name: str = "images", suffix: str = "jpg") -> Path:
        root = tmp_path / name
        for number, (folder, count) in enumerate(counts.items()):
            (root / folder).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                write_image(root / folder / f"{i:03d}.{suffix}", 1000 * number + i)
        return root

    return make


def tree_bytes(root: Path) -> dict[str, bytes]:
    """Every file below a folder, by its name."""
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


@pytest.fixture
def snapshot():
    return tree_bytes
