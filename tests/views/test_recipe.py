"""The augmentation parameters: pure, in their ranges, and torchvision's in distribution."""

import colorsys

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from kaizen_dist.config.schema import ViewsConfig
from kaizen_dist.views import recipe

N = 4000


def draw(config=None, seed=0, task=0, view=0, n=N, size=(32, 32)):
    ids = np.arange(n)
    full = [np.full(n, side) for side in size]
    return recipe.draw(config or ViewsConfig(), seed, task, view, ids, np.zeros(n, int), *full)


def test_a_view_depends_on_its_own_counters_only():
    config = ViewsConfig()
    whole = draw()
    order = np.random.default_rng(0).permutation(N)[:50]
    some = recipe.draw(config, 0, 0, 0, order, np.zeros(50, int), np.full(50, 32), np.full(50, 32))
    for name in ("crop", "colour", "contrast", "blur", "solarise", "flip"):
        assert np.array_equal(getattr(whole, name)[order], getattr(some, name))


def test_every_counter_matters():
    drawn = [
        draw(),
        draw(seed=1),
        draw(task=1),
        draw(view=1),
        recipe.draw(
            ViewsConfig(), 0, 0, 0, np.arange(N), np.ones(N, int), np.full(N, 32), np.full(N, 32)
        ),
    ]
    assert len({b"".join(v.tobytes() for v in vars(p).values()) for p in drawn}) == 5


@pytest.mark.parametrize("size", [(32, 32), (375, 500), (500, 20), (9, 400), (1, 1)])
def test_crops_lie_inside(size):
    top, left, height, width = draw(size=size).crop.T
    assert (height >= 1).all()
    assert (width >= 1).all()
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= size[0]).all()
    assert (left + width <= size[1]).all()


@pytest.mark.parametrize("size", [(32, 32), (375, 500), (500, 20)])
def test_crops_are_torchvisions_in_distribution(size):
    torch.manual_seed(0)
    image = torch.zeros(1, *size)
    params = [
        v2.RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3])
        if hasattr(v2.RandomResizedCrop, "get_params")
        else None
        for _ in range(N)
    ]
    theirs = np.array(params, dtype=float)
    ours = draw(size=size).crop.astype(float)
    for column in range(4):
        for q in (10, 25, 50, 75, 90):
            a, b = np.percentile(ours[:, column], q), np.percentile(theirs[:, column], q)
            assert abs(a - b) <= 0.05 * max(size), (column, q, a, b)


def test_flags_come_as_often_as_asked():
    config = ViewsConfig(flip=0.5, blur=(1.0, 0.1), solarise=(0.0, 0.2), jitter=0.8, grey=0.2)
    first, second = draw(config, view=0), draw(config, view=1)
    assert (first.blur > 0).all()
    assert ((first.blur >= 0.1) & (first.blur <= 2.0)).all()
    assert not first.solarise.any()
    for share, asked in (
        ((second.blur > 0).mean(), 0.1),
        (second.solarise.mean(), 0.2),
        (second.flip.mean(), 0.5),
        ((second.contrast != 1).mean(), 0.8),
    ):
        assert abs(share - asked) < 0.03  # 4,000 draws: at most 0.008 standard error
    factors = second.contrast[second.contrast != 1]
    assert 0.6 <= factors.min() < 0.62
    assert 1.38 < factors.max() <= 1.4


def test_the_colour_matrix_is_made_of_the_known_operations():
    one = np.ones(1)
    identity = recipe._colour(one, one, 0 * one)[0]
    assert np.allclose(identity, np.eye(3), atol=1e-12)
    brighter = recipe._colour(1.3 * one, one, 0 * one)[0]
    assert np.allclose(brighter, 1.3 * np.eye(3), atol=1e-12)
    # Saturation blends with the grey of ITU-R BT.601, as Pillow's and torchvision's does.
    faded = recipe._colour(one, 0.3 * one, 0 * one)[0]
    rgb = np.array([200.0, 30.0, 90.0])
    grey = 0.299 * 200 + 0.587 * 30 + 0.114 * 90
    assert np.allclose(faded @ rgb, 0.3 * rgb + 0.7 * grey, atol=0.1)
    turned = recipe._colour(one, one, 0.5 * one)[0]
    assert np.allclose(turned @ turned, np.eye(3), atol=1e-12), "two half turns of the hue"
    assert np.allclose(turned @ np.full(3, 100.0), 100, atol=0.2), "grey has no hue"
    # The direction is that of HSV: a small positive turn moves red towards yellow.
    slightly = recipe._colour(one, one, 0.05 * one)[0] @ np.array([1.0, 0.2, 0.2])
    assert 0 < colorsys.rgb_to_hsv(*np.clip(slightly, 0, 1))[0] < 0.2


def test_grey_images_have_no_colour():
    colour = draw(ViewsConfig(grey=1.0)).colour
    out = colour @ np.array([10.0, 200.0, 90.0])
    assert np.ptp(out, axis=1).max() < 1e-9
