"""The torch backend against Pillow's and torchvision's own operations."""

import gc
import io
import resource
import weakref

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torchvision.transforms.v2 import functional as F

from kaizen_dist.config.schema import ViewsConfig
from kaizen_dist.views import torch_backend
from kaizen_dist.views.eval_view import EvalView
from kaizen_dist.views.recipe import ViewParameters

PLAIN = ViewsConfig(size=32, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


@pytest.fixture
def image():
    """A picture with smooth areas, edges and all colours, 60 x 80."""
    y, x = np.mgrid[0:60, 0:80]
    red = 255 * x / 79
    green = 127 + 120 * np.sin(x / 7) * np.cos(y / 5)
    blue = np.where((x // 10 + y // 10) % 2, 220, 40)
    return Image.fromarray(np.stack([red, green, blue], axis=-1).astype(np.uint8))


def parameters(n=1, crop=(0, 0, 60, 80), **changes):
    plain = {
        "crop": np.tile(np.array(crop), (n, 1)),
        "colour": np.tile(np.eye(3), (n, 1, 1)),
        "contrast": np.ones(n),
        "blur": np.zeros(n),
        "solarise": np.zeros(n, bool),
        "flip": np.zeros(n, bool),
    }
    return ViewParameters(**(plain | changes))


def levels(view):
    """[3, s, s] in [0, 1] to [s, s, 3] levels of 255."""
    return (view * 255).permute(1, 2, 0).numpy()


def view_of(image, **changes):
    return levels(torch_backend.make_views([image], [parameters(**changes)], PLAIN)[0, 0])


def resized(image, crop=(0, 0, 60, 80)):
    top, left, height, width = crop
    return image.crop((left, top, left + width, top + height)).resize(
        (32, 32), Image.Resampling.BICUBIC
    )


def test_crop_and_resize_are_torchvisions(image):
    crop = (7, 11, 40, 33)
    theirs = F.resized_crop(image, *crop, [32, 32], interpolation=F.InterpolationMode.BICUBIC)
    assert np.abs(view_of(image, crop=crop) - np.asarray(theirs, float)).max() < 1e-4


def test_contrast_is_about_the_mean_grey(image):
    small = resized(image)
    ours = view_of(image, contrast=np.array([0.6]))
    theirs = np.asarray(ImageEnhance.Contrast(small).enhance(0.6), float)
    assert np.abs(ours - theirs).max() <= 1.01  # Pillow rounds the mean and every pixel


@pytest.mark.parametrize("factor", [0.7, 1.0, 1.35])
def test_brightness_is_pillows(image, factor):
    small = resized(image)
    ours = view_of(image, colour=factor * np.eye(3)[None])
    theirs = np.asarray(ImageEnhance.Brightness(small).enhance(factor), float)
    assert np.abs(ours - theirs).max() <= 1.01


def test_values_are_clipped_once(image):
    bright = view_of(image, colour=3 * np.eye(3)[None])
    assert bright.max() <= 255 + 1e-3
    assert bright.min() >= 0


def test_flip_and_solarise_are_pillows(image):
    small = resized(image)
    ours = view_of(image, flip=np.array([True]), solarise=np.array([True]))
    theirs = np.asarray(ImageOps.mirror(ImageOps.solarize(small, 128)), float)
    assert np.abs(ours - theirs).max() < 1e-4


def test_blur_is_torchvisions(image):
    config = PLAIN.model_copy(update={"size": 64})
    ours = torch_backend.make_views([image], [parameters(blur=np.array([1.3]))], config)[0, 0]
    small = image.resize((64, 64), Image.Resampling.BICUBIC)
    theirs = F.gaussian_blur(F.to_dtype(F.pil_to_tensor(small), torch.float32), [7, 7], [1.3, 1.3])
    assert (levels(ours) - theirs.permute(1, 2, 0).numpy()).__abs__().max() < 1e-2


def test_views_are_normalised(image):
    config = ViewsConfig(size=32, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    plain = torch_backend.make_views([image], [parameters()], PLAIN)
    normal = torch_backend.make_views([image], [parameters()], config)
    for c in range(3):
        expected = (plain[0, 0, c] - config.mean[c]) / config.std[c]
        assert torch.allclose(normal[0, 0, c], expected, atol=1e-5)


def test_an_image_gets_its_view_whatever_is_beside_it(image):
    other = ImageOps.invert(image)
    first, second = parameters(2), parameters(2, contrast=np.array([0.7, 1.2]))
    both = torch_backend.make_views([image, other], [first, second], PLAIN)
    assert both.shape == (2, 2, 3, 32, 32)
    alone = torch_backend.make_views(
        [other], [parameters(), parameters(contrast=np.array([1.2]))], PLAIN
    )
    assert torch.allclose(both[:, 1], alone[:, 0], atol=1e-5)


def test_the_evaluation_view_is_centred():
    # 100 x 40: its shorter side becomes 32, then the middle 32 columns of 80 are kept.
    wide = Image.new("RGB", (100, 40), "black")
    wide.paste("white", (45, 0, 55, 40))
    shown = EvalView.of_size(PLAIN.size, PLAIN.mean, PLAIN.std)
    view = levels(shown.of([wide])[0])
    assert np.array_equal(view, view[:, ::-1])
    assert view[16, 16].min() > 250
    assert view[16, 8].max() < 5


def test_broken_bytes_are_an_os_error():
    whole = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(whole, "JPEG")
    for broken in (b"", b"no image", whole.getvalue()[:200]):
        with pytest.raises(OSError, match=r"\S"):
            torch_backend.decode(broken)


def test_sixteen_bits_of_grey_keep_their_shades():
    ramp = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    data = io.BytesIO()
    Image.fromarray(ramp).save(data, "PNG")
    assert np.array_equal(np.asarray(torch_backend.decode(data.getvalue()))[..., 1], ramp >> 8)


@pytest.mark.parametrize("turned", [False, True])
def test_of_a_long_image_the_evaluation_view_is_its_middle(image, turned):
    """What is beyond the middle neither shows nor costs memory, and the middle stays the same."""
    long = Image.new("RGB", (60_000, 60))
    long.paste(image.resize((200, 60)), (29_900, 0))
    if turned:
        long = long.transpose(Image.Transpose.ROTATE_90)
    shown = EvalView.of_size(224, PLAIN.mean, PLAIN.std)
    short = long.crop(
        (0, 29_700, 60, 30_300) if turned else (29_700, 0, 30_300, 60)
    )  # ten times as long as wide: resized as it is
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    whole = shown.pixels(long)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40_000  # KiB
    assert np.abs(whole.astype(int) - shown.pixels(short)).max() <= 1


def test_one_image_at_a_time_is_in_memory(monkeypatch):
    """A batch of large images: what is kept of each is as large as a view."""
    alive = []

    def decode(data, size):
        gc.collect()
        assert sum(reference() is not None for reference in alive) <= 1
        large = Image.new("RGB", (600, 500), int.from_bytes(data, "big"))
        alive.append(weakref.ref(large))
        return large

    monkeypatch.setattr(torch_backend, "decode", decode)
    backend, data = torch_backend.TorchBackend(PLAIN, torch.device("cpu")), [b"\x01"] * 9
    assert backend.centre_views(data).shape == (9, 3, 32, 32)
    both = parameters(9, (0, 0, 500, 600)), parameters(9, (0, 0, 500, 600))
    assert backend.views(data, np.array([(500, 600)] * 9), both).shape == (2, 9, 3, 32, 32)
    assert len(alive) == 18
