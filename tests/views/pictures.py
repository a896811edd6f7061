"""Pictures that are like photographs, encoded as files are."""

import io

import numpy as np
from PIL import Image


def photo(seed: int, height: int, width: int) -> Image.Image:
    """A picture with the statistics of photographs: a 1/f spectrum, channels alike, edges."""
    rng = np.random.default_rng(seed)
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)
    falls = 1 / np.maximum(np.hypot(fy, fx), 1 / max(height, width))
    noise = rng.standard_normal((4, height, width))
    grey, *colours = np.fft.ifft2(np.fft.fft2(noise) * falls).real
    pixels = np.stack([grey + 0.4 * colour for colour in colours], axis=-1)
    pixels = (pixels - pixels.mean()) / pixels.std() * 55 + 120
    y, x = np.mgrid[:height, :width]
    pixels[(y - height * rng.random()) > (x - width / 2) * rng.normal()] += 40
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()
