"""The DALI backend against the torch backend: one recipe, one result up to rounding."""

import io
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from pictures import encoded, photo
from PIL import Image

from kaizen_dist.common.errors import UsageError
from kaizen_dist.config.schema import ViewsConfig
from kaizen_dist.stream.order import Order
from kaizen_dist.views import choose, recipe
from kaizen_dist.views.backend import CPU, UndecodableError
from kaizen_dist.views.loader import Loader
from kaizen_dist.views.recipe import ViewParameters
from kaizen_dist.views.torch_backend import TorchBackend

pytest.importorskip("nvidia.dali", reason="DALI is not installed (pip install '.[dali-cuda13]')")

from kaizen_dist.views import dali_backend, dali_graph

COUNT = 6


def config_of(size: int = 32, **changes) -> ViewsConfig:
    plain = ViewsConfig(size=size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    return plain.model_copy(update={"backend": "dali", **changes})


def photos(height: int, width: int, kind: str = "JPEG", count: int = COUNT) -> list[bytes]:
    return [encoded(photo(seed, height, width), kind) for seed in range(count)]


def sizes_of(images: list[bytes]) -> np.ndarray:
    """[n, 2]: height and width, as an index has them."""
    return np.array([Image.open(io.BytesIO(i)).size[::-1] for i in images]).reshape(-1, 2)


def views_by(maker, images, parameters) -> torch.Tensor:
    return maker.views(images, sizes_of(images), parameters)


def plain(images: list[bytes], **changes) -> ViewParameters:
    """Parameters that change nothing: the whole image, and no operation."""
    n = len(images)
    fields = {
        "crop": np.array([(0, 0, *size) for size in sizes_of(images)]).reshape(n, 4),
        "colour": np.tile(np.eye(3), (n, 1, 1)),
        "contrast": np.ones(n),
        "blur": np.zeros(n),
        "solarise": np.zeros(n, bool),
        "flip": np.zeros(n, bool),
    }
    return ViewParameters(**(fields | changes))


def drawn(config: ViewsConfig, images: list[bytes]) -> tuple[ViewParameters, ViewParameters]:
    """The recipe's own parameters."""
    n = np.arange(len(images))
    height, width = sizes_of(images).T
    first, second = (recipe.draw(config, 0, 0, v, n, 0 * n, height, width) for v in (0, 1))
    return first, second


def levels_apart(config: ViewsConfig, ours, theirs) -> tuple[float, float]:
    """Mean difference in levels of 255, and the share of pixels beyond 8 in any channel."""
    apart = (ours - theirs).abs() * torch.tensor(config.std)[:, None, None] * 255
    return apart.mean().item(), (apart.amax(dim=-3) > 8).float().mean().item()


OPERATIONS = {
    "brighter": {"colour": np.tile(1.35 * np.eye(3), (COUNT, 1, 1))},
    "hue and saturation": {
        "colour": recipe._colour(
            np.linspace(0.6, 1.4, COUNT), np.linspace(0.8, 1.2, COUNT), np.linspace(-0.1, 0.1, 6)
        )
    },
    "grey": {"colour": recipe._colour(np.ones(COUNT), np.zeros(COUNT), np.zeros(COUNT))},
    "contrast": {"contrast": np.linspace(0.6, 1.4, COUNT)},
    "blur": {"blur": np.array([0.0, 0.1, 0.5, 1.0, 1.5, 2.0])},
    "solarise": {"solarise": np.arange(COUNT) % 2 == 0},
    "flip": {"flip": np.arange(COUNT) % 2 == 1},
}


@pytest.mark.parametrize("size", [32, 224])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_is_that_of_the_torch_backend(operation, size):
    config, images = config_of(size), photos(size, size, "PNG")
    changed = plain(images, **OPERATIONS[operation])
    both = plain(images), changed
    ours = views_by(dali_backend.DaliBackend(config, CPU), images, both)
    theirs = views_by(TorchBackend(config, CPU), images, both)
    # All in float32: far below the level that rounding to bytes would cost.
    mean, beyond = levels_apart(config, ours, theirs)
    assert mean < 0.01
    assert beyond == 0
    assert levels_apart(config, ours[0], ours[1])[0] > 0.3, "the operation did nothing"


@pytest.mark.parametrize(("size", "stored"), [(32, (32, 32)), (32, (90, 60)), (224, (300, 420))])
def test_the_whole_recipe_is_that_of_the_torch_backend(size, stored):
    config = config_of(size, blur=(1.0, 0.5), solarise=(0.0, 0.5))
    images = photos(*stored)
    parameters = drawn(config, images)
    ours = views_by(dali_backend.DaliBackend(config, CPU), images, parameters)
    assert ours.shape == (2, COUNT, 3, size, size)
    assert ours.dtype == torch.float32
    mean, beyond = levels_apart(
        config, ours, views_by(TorchBackend(config, CPU), images, parameters)
    )
    assert mean < 1.5
    assert beyond < 0.02


def test_a_window_lets_nothing_beyond_it_in():
    image = Image.new("RGB", (80, 60), "white")
    image.paste("black", (20, 10, 60, 50))
    images = [encoded(image, "PNG")]
    inside = plain(images, crop=np.array([[10, 20, 40, 40]]))
    views = views_by(dali_backend.DaliBackend(config_of(), CPU), images, (inside, inside))
    assert views.max() == 0


@pytest.mark.parametrize("stored", [(32, 32), (40, 100), (333, 500), (375, 250), (31, 12)])
@pytest.mark.parametrize("size", [32, 224])
def test_the_evaluation_view_is_that_of_the_torch_backend(size, stored):
    config, images = config_of(size), photos(*stored, count=2)
    ours = dali_backend.DaliBackend(config, CPU).centre_views(images)
    mean, beyond = levels_apart(config, ours, TorchBackend(config, CPU).centre_views(images))
    assert mean < 1.5
    assert beyond < 0.02


@pytest.mark.parametrize("stored", [(500, 10), (9, 250)])
def test_of_a_long_image_the_evaluation_sees_the_middle(stored):
    """Resized whole, 10 x 500 pixels would become 256 x 12,800 for a view of 224."""
    config, images = config_of(224), photos(*stored, count=2)
    ours = dali_backend.DaliBackend(config, CPU).centre_views(images)
    mean, beyond = levels_apart(config, ours, TorchBackend(config, CPU).centre_views(images))
    assert mean < 1.5
    assert beyond < 0.02


def test_a_gpu_is_to_decode_as_a_cpu_does_and_each_image_by_itself(monkeypatch):
    """What is asked of its decoder; what comes of it: test_views_gpu.py."""
    asked, image = [], dali_graph.fn.decoders.image
    monkeypatch.setattr(
        dali_graph.fn.decoders, "image", lambda *a, **o: asked.append(o) or image(*a, **o)
    )
    options = {"batch_size": 1, "num_threads": 1, "device_id": 0}
    dali_graph.two_views(config_of(), "mixed", **options)
    dali_graph.centre_view(config_of(), "mixed", **options)
    dali_graph.decoded("mixed", **options)
    assert [options["device"] for options in asked] == ["mixed"] * 3
    for options in asked:
        assert options["jpeg_fancy_upsampling"] is True
        assert options["hw_decoder_load"] in (0.0, 1.0), "a share for each of two decoders"


def formats() -> dict[str, bytes]:
    image = photo(0, 48, 48)
    deep = (np.asarray(image.convert("L")).astype(np.uint16) << 8) + 77
    return {
        "jpeg": encoded(image),
        "progressive jpeg": encoded(image, progressive=True),
        "grey jpeg": encoded(image.convert("L")),
        "cmyk jpeg": encoded(image.convert("CMYK")),
        "rotated by exif": encoded(image, exif=_turned()),
        "png": encoded(image, "PNG"),
        "grey png": encoded(image.convert("L"), "PNG"),
        "transparent png": encoded(image.convert("RGBA"), "PNG"),
        "palette png": encoded(image.convert("P"), "PNG"),
        "1-bit png": encoded(image.convert("1"), "PNG"),
        "grey and alpha png": encoded(image.convert("LA"), "PNG"),
        "palette png with a clear colour": encoded(image.convert("P"), "PNG", transparency=1),
        "grey png with a clear grey": encoded(image.convert("L"), "PNG", transparency=100),
        "png with a profile": encoded(image, "PNG", icc_profile=b"profile"),
        "animated png": _several(image, "PNG"),
        "png turned by exif": encoded(image, "PNG", exif=_turned()),
        "16-bit png": encoded(Image.fromarray(deep), "PNG"),
        "gif": encoded(image.convert("P"), "GIF"),
        "ppm": encoded(image, "PPM"),
        "bmp": encoded(image, "BMP"),
        "webp": encoded(image, "WEBP"),
        "tiff": encoded(image, "TIFF"),
        "tiff turned by exif": encoded(image, "TIFF", exif=_turned()),
        "cmyk tiff": encoded(image.convert("CMYK"), "TIFF"),
        "tiff of fractions": encoded(Image.fromarray(np.float32(deep) / 65535), "TIFF"),
        "two tiffs": _several(image, "TIFF"),
        "two pictures of a phone": _several(image, "MPO"),
        "animated gif": _several(image, "GIF"),
        "animated webp": _several(image, "WEBP"),
    }


def _several(image: Image.Image, kind: str) -> bytes:
    return encoded(image, kind, save_all=True, append_images=[Image.new("RGB", image.size)])


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def test_every_format_of_a_stream_is_decoded_as_pillow_does():
    config, images = config_of(48), list(formats().values())  # 48: nothing is resized
    both = plain(images), plain(images)
    ours = views_by(dali_backend.DaliBackend(config, CPU), images, both)
    theirs = views_by(TorchBackend(config, CPU), images, both)
    for name, mine, other in zip(formats(), ours[0], theirs[0], strict=True):
        mean, beyond = levels_apart(config, mine, other)
        assert (mean < 0.01, beyond) == (True, 0), name


@pytest.mark.parametrize(("name", "most"), [("MAX_BATCH", 4), ("MAX_PIXELS", 4500)])
def test_batches_of_any_size(monkeypatch, name, most):
    monkeypatch.setattr(dali_backend, name, most)
    config, images = config_of(), photos(40, 50, count=10)
    maker = dali_backend.DaliBackend(config, CPU)
    whole = drawn(config, images)
    expected = views_by(maker, images, whole)
    for size in (0, 1, 4, 5, 8, 10):
        some = [ViewParameters(**{k: v[:size] for k, v in vars(p).items()}) for p in whole]
        assert torch.equal(views_by(maker, images[:size], (some[0], some[1])), expected[:, :size])
        assert maker.centre_views(images[:size]).shape == (size, 3, 32, 32)
        decoded = maker.decode(images[:size], sizes_of(images[:size]))
        assert torch.equal(maker.views_of(decoded, (some[0], some[1])), expected[:, :size])


def test_large_images_take_several_runs():
    assert dali_backend._runs([]) == []
    assert dali_backend._runs([1] * 300) == [slice(0, 256), slice(256, 300)]
    large = dali_backend.MAX_PIXELS // 2
    assert dali_backend._runs([large, large, 1, 2 * large, 5 * large, 1]) == [
        *(slice(0, 2), slice(2, 3), slice(3, 4), slice(4, 5), slice(5, 6))
    ]


def test_a_view_depends_on_its_own_image_and_parameters_only():
    config = config_of(blur=(0.5, 0.5), solarise=(0.5, 0.5))
    images = photos(64, 48)
    maker = dali_backend.DaliBackend(config, CPU)
    first, second = drawn(config, images)
    views = views_by(maker, images, (first, second))
    assert torch.equal(views_by(maker, images, (first, second)), views)
    views_by(maker, photos(50, 70), drawn(config, photos(50, 70)))
    order = np.array([3, 0, 5, 1])
    shuffled = [ViewParameters(**{k: v[order] for k, v in vars(p).items()}) for p in drawn(
        config, images
    )]  # fmt: skip
    beside_others = views_by(maker, [images[i] for i in order], (shuffled[0], shuffled[1]))
    assert torch.equal(beside_others, views[:, order])
    assert torch.equal(
        views_by(dali_backend.DaliBackend(config, CPU), images, (first, second)), views
    )


def test_threads_do_not_meet():
    config = config_of()
    batches = [[encoded(photo(10 * b + i, 40, 40)) for i in range(4)] for b in range(6)]
    maker = dali_backend.DaliBackend(config, CPU)
    alone = [views_by(maker, batch, drawn(config, batch)) for batch in batches]
    with ThreadPoolExecutor(3) as threads:
        together = list(
            threads.map(lambda batch: views_by(maker, batch, drawn(config, batch)), batches)
        )
    for ours, theirs in zip(together, alone, strict=True):
        assert torch.equal(ours, theirs)


def broken() -> dict[str, bytes]:
    whole, png = encoded(photo(0, 40, 40), quality=95), encoded(photo(0, 40, 40), "PNG")
    return {
        "empty": b"",
        "text": b"no image",
        "cut in its header": whole[:200],
        "cut in its pixels": whole[: len(whole) * 2 // 3],
        "zeros": bytes(500),
        "12 bits of precision": whole.replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x1b"),
        "png cut": png[: len(png) // 2],
        "png damaged": png[:300] + bytes(60) + png[360:],
        "gif cut": encoded(photo(0, 40, 40).convert("P"), "GIF")[:300],
        "text of a bomb": png[:33] + _text(b"x\0\0" + zlib.compress(bytes(9 << 20))) + png[33:],
        "text of a wrong checksum": png[:33] + _text(b"x\0\0")[:-1] + b"\0" + png[33:],
        "fractions beyond 1": encoded(Image.fromarray(np.full((40, 40), 1.5, np.float32)), "TIFF"),
        "too long": encoded(Image.new("1", (1001, 1)), "PNG"),
        "too long a jpeg": encoded(Image.new("L", (8008, 8)), "JPEG"),
    }


def _text(content: bytes) -> bytes:
    """A chunk of a PNG."""
    named = b"zTXt" + content
    return len(content).to_bytes(4, "big") + named + zlib.crc32(named).to_bytes(4, "big")


@pytest.mark.parametrize("kind", broken())
def test_a_broken_image_is_found_and_the_backend_lives_on(kind):
    config, images = config_of(), photos(40, 40)
    maker = dali_backend.DaliBackend(config, CPU)
    parameters, sizes = drawn(config, images), sizes_of(images)
    expected = maker.views(images, sizes, parameters)
    damaged = [*images[:3], broken()[kind], images[4], broken()[kind]]
    for make in (
        lambda: maker.views(damaged, sizes, parameters),
        lambda: maker.decode(damaged, sizes),
        lambda: maker.centre_views(damaged),
    ):
        with pytest.raises(UndecodableError) as caught:
            make()
        assert caught.value.reasons.keys() == {3, 5}
        assert torch.equal(maker.views(images, sizes, parameters), expected)


@pytest.mark.parametrize("maker", [dali_backend.DaliBackend, TorchBackend])
@pytest.mark.parametrize("kind", ["PNG", "GIF", "JPEG"])
def test_an_image_of_another_size_than_its_index_says_is_found(maker, kind):
    config, images = config_of(), photos(40, 40)
    for height, width in ((40, 39), (41, 40)):
        other = [*images[:4], encoded(photo(0, height, width), kind), *images[5:]]
        with pytest.raises(UndecodableError) as caught:
            maker(config, CPU).views(other, sizes_of(images), (plain(images), plain(images)))
        reason = f"it has {height} x {width} pixels, the index says 40 x 40"
        assert caught.value.reasons == {4: reason}


def test_what_only_pillow_decodes_is_still_made_into_views(monkeypatch):
    """DALI refuses an image on which its header's parser had no remark."""
    config, images = config_of(48), formats()
    monkeypatch.setattr(dali_backend, "_trusted_size", lambda image: (48, 48))
    data = [images["jpeg"], images["gif"], images["png"]]
    views = views_by(dali_backend.DaliBackend(config, CPU), data, (plain(data), plain(data)))
    theirs = views_by(TorchBackend(config, CPU), data, (plain(data), plain(data)))
    assert levels_apart(config, views, theirs)[0] < 0.01


@pytest.fixture(scope="module")
def order(digits) -> Order:
    return Order(0, 0, len(digits.split(0, "train")), 32, 4)


def test_batches_made_ahead_are_those_of_their_steps(digits, order):
    config = config_of(8, workers=3, prefetch=4)
    loader = Loader(order, {0: digits.split(0, "train")}, config)
    steps = [(0, step) for step in range(order.steps_per_epoch)]
    ahead = list(loader.batches(steps))
    assert isinstance(loader.backend, dali_backend.DaliBackend)
    fresh = Loader(order, {0: digits.split(0, "train")}, config)
    for (epoch, step), batch in reversed(list(zip(steps, ahead, strict=True))):
        assert torch.equal(fresh.batch(epoch, step).views, batch.views)
    theirs = Loader(order, loader.splits, config.model_copy(update={"backend": "torch"}))
    batch = theirs.batch(0, 0)
    assert np.array_equal(batch.ids, ahead[0].ids)
    assert levels_apart(config, batch.views, ahead[0].views)[0] < 1.5


def test_auto_takes_dali_where_it_is_installed(monkeypatch):
    assert choose.resolve("auto") == "dali"
    assert isinstance(choose.open_backend(config_of(backend="auto")), dali_backend.DaliBackend)
    monkeypatch.setattr(choose, "find_spec", lambda name: None)
    assert choose.resolve("auto") == "torch"
    assert isinstance(choose.open_backend(config_of(backend="auto")), TorchBackend)
    with pytest.raises(UsageError, match=r"pip install 'kaizen-dist\[dali-cuda13\]'"):
        choose.open_backend(config_of(backend="dali"))
