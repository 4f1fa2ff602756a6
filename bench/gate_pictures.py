"""Pictures for ``bench.gate``: X-rays as they come from elsewhere, what is made of X-rays and is none any more, and drawn
pictures of other things. All are gray, mode ``L``, of any size; nothing here comes from a file."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Sequence

import numpy as np
import scipy.ndimage
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont, ImageOps

Draw = Callable[[np.random.Generator], Image.Image]

MIRROR, TURN = Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180


# X-rays of the chest, and changes that leave them that


def chest(film: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A frontal X-ray as another device, archive or paper would show it: turned by at most 18 degrees, cropped by up to a
    sixth of each side, squeezed, on a page, collimated, marked, of other grays."""
    if rng.random() < 0.5:
        film = ImageOps.mirror(film)
    if rng.random() < 0.5:
        film = turned(film, float(np.clip(rng.normal(0, 7), -18, 18)), rng)
    if rng.random() < 0.6:
        film = cropped(film, rng.uniform(0, rng.choice([0.06, 0.16]), 4))
    if rng.random() < 0.3:
        film = film.resize((max(round(film.width * np.exp(rng.uniform(-0.3, 0.3))), 32), film.height))
    if rng.random() < 0.2:
        film = collimated(film, rng)
    film = regrayed(film, rng)
    if rng.random() < 0.35:
        film = marked(film, rng)
    if rng.random() < 0.3:
        film = on_page(film, rng, 0.3)
    return worn(film, rng)


Box = tuple[float, float, float, float]
"""Left, top, right and bottom, as shares of an image's sides."""


def childlike(film: Image.Image, lungs: Box, rng: np.random.Generator) -> Image.Image:
    """An X-ray as those of small children are: the trunk alone, surrounded by air since the arms are held up, with more of
    the belly than adults' show, and perhaps the jaw.

    Args:
      film: an X-ray.
      lungs: the box of both lungs on it.
      rng: random numbers.
    """
    left, top, right, bottom = lungs
    wide, high = right - left, bottom - top
    beside, above, below = rng.uniform(0.02, 0.16), rng.uniform(0.05, 0.3), rng.uniform(0.05, 0.4)
    box = [left - beside * wide, top - above * high, right + beside * wide, bottom + below * high]
    pixels = np.asarray(film)
    rows = np.linspace(box[1], box[3], 200) * film.height
    columns = np.linspace(box[0], box[2], 180) * film.width
    # What lies below the film is what its last rows show, out of focus.
    pixels = pixels[np.clip(rows, 0, film.height - 1).astype(int)][:, np.clip(columns, 0, film.width - 1).astype(int)]
    y = np.linspace(0, 1, 200)[:, None]
    waist, armpit, arms = rng.uniform(0, 0.06), rng.uniform(0, 0.12), rng.uniform(-0.3, 0.15)
    edge = waist * np.sin(np.pi * y * rng.uniform(0.5, 1.5)) + armpit * np.exp(-(((y - 0.15) / 0.2) ** 2))
    edge = edge + np.clip(0.12 - y, 0, None) * 8 * arms
    x = np.linspace(0, 1, 180)[None]
    lean = rng.uniform(-0.03, 0.03) * (y - 0.5)
    inside = np.minimum(x + lean - edge, 1 - x - lean - edge) / rng.uniform(0.01, 0.05)
    body = pixels * np.clip(inside, 0, 1) ** rng.uniform(0.5, 1)
    air = rng.uniform(0, 35)
    if rng.random() < 0.4:
        jaw = np.hypot(
            (x - rng.uniform(0.4, 0.6)) / rng.uniform(0.12, 0.3), (y + rng.uniform(0, 0.05)) / rng.uniform(0.05, 0.16)
        )
        body = np.maximum(body, rng.uniform(150, 250) * np.clip((1 - jaw) * 6, 0, 1))
    child = as_image(np.maximum(body, air))
    sides = [int(180 * share) for share in rng.uniform(0, 0.2, 2)]
    child = ImageOps.expand(child, (sides[0], 0, sides[1], 0), int(air))
    return chest(child, rng) if rng.random() < 0.8 else child


def other(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A picture of something else, changed like an X-ray, and cropped, turned and laid on pages more than that."""
    if rng.random() < 0.5:
        image = ImageOps.mirror(image)
    if rng.random() < 0.25:
        image = image.rotate(90 * int(rng.integers(1, 4)), expand=True)
    if rng.random() < 0.5:
        image = turned(image, float(rng.normal(0, 12)), rng)
    if rng.random() < 0.7:
        image = cropped(image, rng.uniform(0, rng.choice([0.08, 0.25]), 4))
    if rng.random() < 0.3:
        image = image.resize((max(round(image.width * np.exp(rng.uniform(-0.4, 0.4))), 32), image.height))
    if rng.random() < 0.1:
        image = collimated(image, rng)
    image = regrayed(image, rng)
    if rng.random() < 0.3:
        image = marked(image, rng)
    if rng.random() < 0.3:
        image = on_page(image, rng, 0.6)
    return worn(image, rng)


def turned(film: Image.Image, degrees: float, rng: np.random.Generator) -> Image.Image:
    fill = int(rng.choice([0, 0, 255, int(rng.integers(256))]))
    return film.rotate(degrees, Image.Resampling.BILINEAR, expand=bool(rng.random() < 0.5), fillcolor=fill)


def cropped(film: Image.Image, cut: Sequence[float] | np.ndarray) -> Image.Image:
    """Without shares of the sides, left, top, right and bottom."""
    left, top, right, bottom = (float(share) for share in cut)
    width, height = film.size
    return film.crop((int(width * left), int(height * top), int(width * (1 - right)), int(height * (1 - bottom))))


def collimated(film: Image.Image, rng: np.random.Generator) -> Image.Image:
    mask = Image.new("L", film.size, 0)
    width, height = film.size
    left, upper, right, lower = rng.uniform(-0.15, 0.03, 4)
    box = [width * left, height * upper, width * (1 - right), height * (1 - lower)]
    draw = ImageDraw.Draw(mask)
    draw.ellipse(box, fill=255) if rng.random() < 0.5 else draw.rounded_rectangle(box, 0.2 * width, fill=255)
    return Image.composite(film, Image.new("L", film.size, int(rng.choice([0, 0, 255]))), mask)


def regrayed(film: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Of another curve of grays, of local contrast or a negative."""
    kind = rng.random()
    if kind < 0.12:
        film = ImageOps.equalize(film)
    elif kind < 0.2:
        film = ImageOps.autocontrast(film, cutoff=float(rng.uniform(0, 5)))
    if rng.random() < 0.6:
        gamma, low, high = float(np.exp(rng.normal(0, 0.35))), float(rng.uniform(0, 50)), float(rng.uniform(175, 255))
        levels = low + (high - low) * (np.arange(256) / 255) ** gamma
        film = film.point([round(level) for level in levels.tolist()])
    if rng.random() < 0.15:
        film = ImageEnhance.Contrast(film).enhance(float(rng.uniform(0.5, 1.8)))
    return ImageOps.invert(film) if rng.random() < 0.06 else film


def marked(film: Image.Image, rng: np.random.Generator) -> Image.Image:
    """With letters, lines of text, wires and disks on it."""
    film = film.copy()
    draw, (width, height) = ImageDraw.Draw(film), film.size
    for _ in range(int(rng.integers(1, 4))):
        x, y, gray = float(rng.uniform(0, width)), float(rng.uniform(0, height)), int(rng.choice([0, 255, 255]))
        kind = int(rng.integers(4))
        if kind < 2:
            text = str(rng.choice(["L", "R", "PORTABLE AP", "ERECT", "12:30", "AP SUPINE 40", words(rng, 3)]))
            draw.text(
                (x * 0.8, rng.choice([0.03, 0.9]) * height), text, gray, font(max(width * rng.uniform(0.03, 0.09), 8))
            )
        elif kind == 2:
            ends = [(x, y), *((float(a), float(b)) for a, b in rng.uniform(0, (width, height), (2, 2)))]
            draw.line(ends, gray, max(width // 120, 1), joint="curve")
        else:
            radius = width * rng.uniform(0.01, 0.04)
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=gray, width=max(width // 150, 1))
    return film


def on_page(film: Image.Image, rng: np.random.Generator, most: float) -> Image.Image:
    """With margins of up to that share of its sides, of one gray."""
    shares = rng.uniform(0, most, 4) * (rng.random(4) < 0.6)
    left, upper, right, lower = (int(share * side) for share, side in zip(shares, film.size * 2, strict=True))
    return ImageOps.expand(film, (left, upper, right, lower), int(rng.choice([0, 0, 255, int(rng.integers(256))])))


def worn(film: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Small, blurred, noisy, compressed."""
    if rng.random() < 0.15:
        side = int(rng.integers(64, 128))
        film = film.resize((side, max(round(side * film.height / film.width), 32)))
    if rng.random() < 0.15:
        film = film.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, film.width / 150 + 0.3))))
    if rng.random() < 0.15:
        noise = rng.normal(0, rng.uniform(2, 14), (film.height, film.width))
        film = as_image(np.asarray(film) + noise)
    if rng.random() < 0.15:
        file = io.BytesIO()
        film.save(file, "JPEG", quality=int(rng.integers(15, 70)))
        film = Image.open(file).convert("L")
    return film


# What is made of X-rays of the chest and is to be refused


def upside_down(films: Sequence[Image.Image], rng: np.random.Generator) -> Image.Image:
    film = films[0].transpose(TURN)
    film = ImageOps.mirror(film) if rng.random() < 0.5 else film
    return turned(film, float(np.clip(rng.normal(0, 8), -25, 25)), rng) if rng.random() < 0.4 else film


def sideways(films: Sequence[Image.Image], rng: np.random.Generator) -> Image.Image:
    """Turned by 60 to 120 degrees, mostly by 90."""
    degrees = 90 if rng.random() < 0.7 else float(rng.uniform(60, 120))
    return films[0].rotate(degrees * int(rng.choice([1, -1])), Image.Resampling.BILINEAR, expand=True)


def side_by_side(films: Sequence[Image.Image], rng: np.random.Generator) -> Image.Image:
    """Two X-rays beside or above each other, or a collage of three to six."""
    count = 2 if rng.random() < 0.6 else int(rng.integers(3, 7))
    columns = int(rng.choice([1, 2, 2, 2])) if count == 2 else int(rng.integers(2, 4))
    rows, side, gap = -(-count // columns), 200, int(rng.integers(0, 15))
    height = int(side * rng.uniform(0.8, 1.25))
    page = Image.new(
        "L", (columns * (side + gap), rows * (height + gap)), int(rng.choice([0, 255, int(rng.integers(256))]))
    )
    same = rng.random() < 0.2
    for place in range(count):
        film = films[0 if same else place % len(films)].resize((side, height))
        page.paste(film, (place % columns * (side + gap), place // columns * (height + gap)))
    return page


def part(films: Sequence[Image.Image], rng: np.random.Generator) -> Image.Image:
    """A part of a fifth to two fifths of each side, anywhere."""
    width, height = (float(share) for share in rng.uniform(0.2, 0.42, 2))
    left, top = float(rng.uniform(0, 1 - width)), float(rng.uniform(0, 1 - height))
    return cropped(films[0], (left, top, 1 - left - width, 1 - top - height))


def mixed_page(films: Sequence[Image.Image], rng: np.random.Generator) -> Image.Image:
    """A page of text or a screen, on which X-rays are small."""
    page = (text_page if rng.random() < 0.5 else screen)(rng)
    for film in films[: int(rng.integers(1, 4))]:
        width = int(page.width * rng.uniform(0.12, 0.35))
        height = max(int(width * film.height / film.width), 8)
        place = int(rng.uniform(0, page.width - width)), int(rng.uniform(0, max(page.height - height, 1)))
        page.paste(film.resize((width, height)), place)
    return page


def slice_of_lungs(mask: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """A coronal or an axial slice of a CT of a chest, about: black lungs with bright vessels, and a flat bright body.

    Args:
      mask: bool ``[N, N]``, the lungs of an X-ray.
      rng: random numbers.
    """
    if rng.random() < 0.4:  # axial lungs are as wide as high, and of one half
        rows = np.flatnonzero(mask.any(1))
        mask = np.asarray(Image.fromarray(mask[rows[0] : rows[-1] + 1]).resize(mask.shape[::-1]))
        mask = np.pad(mask, int(rng.integers(4, 24)))
    side = mask.shape[0]
    grown = scipy.ndimage.binary_dilation(mask, iterations=max(round(side * rng.choice([0.03, 0.08, 0.15, 0.3])), 1))
    body = scipy.ndimage.binary_fill_holes(scipy.ndimage.binary_closing(np.pad(grown, side), iterations=side // 4))
    body = np.asarray(body)[side:-side, side:-side]
    bone = scipy.ndimage.binary_dilation(mask, iterations=max(side // 24, 1)) & ~mask
    bone &= np.sin(np.arange(side) * rng.uniform(0.3, 0.9))[:, None] > rng.uniform(0.2, 0.8)
    if rng.random() < 0.5:
        bone[:] = False
    pixels = np.full(mask.shape, rng.choice([0, 0, 10, rng.uniform(0, 90)]))
    pixels[body] = rng.uniform(110, 250)
    pixels = pixels + body * rng.uniform(1, 20) * clouds(rng, mask.shape, float(rng.choice([1.0, 2.0])))
    pixels[bone & body] = 255
    lungs = rng.uniform(0, 70) + rng.uniform(5, 60) * np.clip(clouds(rng, mask.shape, 1.5), 0, None)
    lungs[clouds(rng, mask.shape, float(rng.uniform(0.4, 1))) > rng.uniform(1.2, 2.2)] = rng.uniform(120, 240)
    pixels = np.where(mask, lungs, pixels)
    return as_image(pixels).resize((256, 256)).filter(ImageFilter.GaussianBlur(float(rng.uniform(0.4, 2))))


MADE_OF_CHESTS = {
    "upside down": upside_down,
    "turned by 90 degrees": sideways,
    "several X-rays": side_by_side,
    "part of a chest": part,
    "page with X-rays": mixed_page,
}
"""Kind → what makes one of some X-rays."""


# Drawn pictures of other things


def as_image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


@functools.cache
def font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(round(size))


def words(rng: np.random.Generator, count: int) -> str:
    letters = np.array(list("etaoinshrdlucmfwypvbgkETAOINS0123456789"))
    return " ".join("".join(rng.choice(letters, int(rng.integers(2, 9)))) for _ in range(count))


def clouds(rng: np.random.Generator, shape: tuple[int, int], power: float) -> np.ndarray:
    """Noise of a spectrum 1/f^power, mean 0 and deviation 1: power 1 looks as natural images do (Field 1987)."""
    frequency = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None])
    frequency[0, 0] = 1
    spectrum = np.exp(2j * np.pi * rng.random(frequency.shape)) / frequency**power
    spectrum[0, 0] = 0
    noise = np.fft.irfft2(spectrum, shape)
    return noise / max(float(noise.std()), 1e-6)


def texture(rng: np.random.Generator) -> Image.Image:
    return as_image(rng.uniform(60, 190) + rng.uniform(15, 70) * clouds(rng, (160, 160), float(rng.uniform(0, 2))))


def dead_leaves(rng: np.random.Generator) -> Image.Image:
    """Shapes that hide each other, as things in photographs do (Lee, Mumford, Huang 2001)."""
    image = texture(rng).resize((200, 200))
    draw = ImageDraw.Draw(image)
    for radius in np.sort(5 / rng.random(int(rng.integers(15, 150))) ** 0.7)[::-1]:
        x, y, wide = *rng.uniform(0, 200, 2), min(float(radius), 90) * rng.uniform(0.4, 1)
        box, gray = (x - wide, y - min(radius, 90), x + wide, y + min(radius, 90)), int(rng.integers(256))
        draw.ellipse(box, gray) if rng.random() < 0.6 else draw.rectangle(box, gray)
    shaded = np.asarray(image) + rng.uniform(0, 25) * clouds(rng, (200, 200), 1.2)
    return as_image(shaded).filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 2))))


def gradient(rng: np.random.Generator) -> Image.Image:
    y, x = np.mgrid[-1:1:128j, -1:1:128j]
    a, b, c, d = rng.normal(0, 1, 4)
    plane = a * x + b * y + c * np.hypot(x - d, y - a) + d * np.sin(rng.uniform(1, 12) * (a * x + b * y))
    return as_image(128 + rng.uniform(30, 120) * plane / max(np.abs(plane).max(), 1e-3) + rng.normal(0, 2, x.shape))


def text_page(rng: np.random.Generator) -> Image.Image:
    width, height = (int(side) for side in rng.integers(240, 480, 2))
    dark = rng.random() < 0.2
    page = Image.new("L", (width, height), 20 if dark else 250)
    draw, size = ImageDraw.Draw(page), int(rng.integers(7, 26))
    columns = int(rng.integers(1, 3))
    for column in range(columns):
        y, left = rng.uniform(5, 30), 10 + column * width / columns
        while y < height - size:
            line = words(rng, int(rng.integers(1, 12)))
            draw.text((left, y), line[: int(width / columns / size * 1.7)], 235 if dark else 15, font(size))
            y += size * rng.uniform(1.1, 2.2)
    return page


def chart(rng: np.random.Generator) -> Image.Image:
    page = Image.new("L", (300, 220), int(rng.choice([255, 255, 20])))
    draw, ink = ImageDraw.Draw(page), 0 if page.getpixel((0, 0)) == 255 else 255
    draw.line([(30, 10), (30, 190), (290, 190)], ink, 2)
    count, kind = int(rng.integers(3, 12)), int(rng.integers(3))
    heights = rng.uniform(10, 170, count)
    for place, height in enumerate(heights.tolist()):
        x, wide = 35 + place * 250 / count, 200 / count
        if kind == 0:
            draw.rectangle((x, 190 - height, x + wide, 190), fill=int(rng.integers(256)), outline=ink)
        elif kind == 1:
            draw.ellipse((x, 190 - height, x + 8, 198 - height), fill=ink)
        draw.text((x, 195), words(rng, 1)[:3], ink, font(10))
    if kind == 2:
        draw.line([(35 + n * 250 / count, 190 - h) for n, h in enumerate(heights.tolist())], ink, 2)
    return page


def screen(rng: np.random.Generator) -> Image.Image:
    """Windows with bars, buttons and text."""
    page = Image.new("L", (400, int(rng.choice([225, 250, 300, 700]))), int(rng.integers(256)))
    draw = ImageDraw.Draw(page)
    for _ in range(int(rng.integers(2, 9))):
        x, y = rng.uniform(0, page.width * 0.8), rng.uniform(0, page.height * 0.8)
        wide, high, gray = rng.uniform(40, 300), rng.uniform(20, 250), int(rng.integers(256))
        draw.rounded_rectangle((x, y, x + wide, y + high), 6, gray, outline=int(rng.integers(256)))
        draw.rectangle((x, y, x + wide, y + 12), int(rng.integers(256)))
        for line in range(int(high / 14)):
            text = words(rng, 6)[: int(wide / 6)]
            draw.text((x + 4, y + 14 + 12 * line), text, 255 - gray if abs(gray - 128) > 40 else 0, font(9))
    return page


def slice_of_a_body(rng: np.random.Generator) -> Image.Image:
    """A bright ring with organs in it on black, as a slice of a head, a trunk or a limb is."""
    side = 200
    page = Image.new("L", (side, side), int(rng.choice([0, 0, int(rng.integers(40))])))
    draw = ImageDraw.Draw(page)
    wide, high = rng.uniform(45, 95), rng.uniform(40, 90)
    for shrink, gray in zip(
        (1, 0.93, 0.86), (rng.integers(30, 255), rng.integers(90, 255), rng.integers(20, 200)), strict=True
    ):
        draw.ellipse((100 - wide * shrink, 100 - high * shrink, 100 + wide * shrink, 100 + high * shrink), int(gray))
    for _ in range(int(rng.integers(2, 16))):
        x, y = 100 + rng.uniform(-0.6, 0.6) * wide, 100 + rng.uniform(-0.6, 0.6) * high
        a, b = rng.uniform(3, 35, 2)
        draw.ellipse((x - a, y - b, x + a, y + b), int(rng.integers(256)))
    body = np.asarray(page.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.5, 3)))), float)
    inside = np.asarray(page) > 40
    return as_image(body + inside * rng.uniform(2, 25) * clouds(rng, (side, side), float(rng.uniform(0.3, 1.3))))


def ultrasound(rng: np.random.Generator) -> Image.Image:
    """A fan of speckle on black."""
    side = 220
    y, x = np.mgrid[:side, :side].astype(float)
    top, half = rng.uniform(-60, 15), rng.uniform(0.35, 0.85)
    radius, angle = np.hypot(y - top, x - side / 2), np.arctan2(x - side / 2, y - top)
    fan = (np.abs(angle) < half) & (radius > max(rng.uniform(5, 40) - top, 0)) & (radius < side - top - rng.uniform(5, 30))
    if rng.random() < 0.2:
        fan = (np.abs(x - side / 2) < side * rng.uniform(0.3, 0.48)) & (y > 10) & (y < side * 0.9)
    tissue = np.exp(rng.uniform(0.4, 1.2) * clouds(rng, (side, side), 1.6)) * rng.rayleigh(1, (side, side))
    image = as_image(fan * np.clip(rng.uniform(25, 80) * tissue * np.exp(-rng.uniform(0, 0.006) * radius), 0, 255))
    image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.5, 1.5))))
    return marked(image, rng) if rng.random() < 0.5 else image


def limb(rng: np.random.Generator) -> Image.Image:
    """Long bones within soft tissue: an arm, a leg, fingers, a joint, a spine."""
    width, height = int(rng.integers(90, 240)), int(rng.integers(180, 300))
    x, y = np.linspace(-1, 1, width)[None], np.linspace(-1, 1, height)[:, None]
    bend = rng.uniform(-0.3, 0.3) * y + rng.uniform(-0.2, 0.2) * y**2

    def rod(centre: float, radius: float, bright: float, hollow: float) -> np.ndarray:
        wide = radius * (1 + rng.uniform(0, 0.8) * np.abs(y) ** 3)
        depth = np.sqrt(np.clip(1 - ((x - centre - bend) / wide) ** 2, 0, None))
        inner = np.sqrt(np.clip(1 - ((x - centre - bend) / wide / 0.7) ** 2, 0, None))
        return bright * (depth - hollow * inner)

    pixels = rng.uniform(0, 40) + rod(rng.uniform(-0.2, 0.2), rng.uniform(0.5, 1.1), rng.uniform(40, 110), 0)
    count = int(rng.integers(1, 6))
    for place in np.linspace(-0.6, 0.6, count) if count > 1 else (0.0,):
        pixels = pixels + rod(
            float(place), rng.uniform(0.08, 0.5 / count + 0.05), rng.uniform(60, 150), rng.uniform(0, 0.7)
        )
    if rng.random() < 0.6:  # joints, or the disks of a spine
        gaps = np.cos(y * rng.uniform(2, 30) + rng.uniform(0, 6) + 0.3 * x)
        pixels = pixels * (1 - rng.uniform(0.2, 0.6) * (gaps > rng.uniform(0.7, 0.95)))
    pixels = pixels + rng.uniform(1, 8) * clouds(rng, pixels.shape, 1.0)
    return as_image(pixels).filter(ImageFilter.GaussianBlur(float(rng.uniform(0.5, 2))))


def round_part(rng: np.random.Generator) -> Image.Image:
    """A skull, a pelvis, a breast or teeth, very roughly: bright rims, and dark and bright ovals in pairs."""
    side = 220
    y, x = np.mgrid[-1:1:220j, -1:1:220j]
    x = np.abs(x) if rng.random() < 0.6 else x + rng.uniform(-1, 1)
    a, b = rng.uniform(0.5, 1.0, 2)
    rim = np.hypot(x / a, (y - rng.uniform(-0.2, 0.2)) / b)
    pixels = rng.uniform(0, 30) + np.where(rim < 1, rng.uniform(50, 130) * np.sqrt(np.clip(1 - rim**2, 0, 1)), 0)
    pixels += rng.uniform(0, 130) * np.exp(-(((rim - 0.95) / rng.uniform(0.03, 0.12)) ** 2))
    for _ in range(int(rng.integers(1, 8))):
        u, v, w, h = *rng.uniform(-0.8, 0.8, 2), *rng.uniform(0.05, 0.4, 2)
        pixels += rng.normal(0, 60) * np.exp(-((((x - abs(u)) / w) ** 2 + ((y - v) / h) ** 2) ** rng.uniform(1, 3)))
    pixels += rng.uniform(1, 8) * clouds(rng, (side, side), 1.2)
    return as_image(pixels).filter(ImageFilter.GaussianBlur(float(rng.uniform(0.5, 2))))


def phantom(rng: np.random.Generator) -> Image.Image:
    from covidjax.data import synthetic

    return Image.fromarray(synthetic.draw(int(rng.integers(5000)), seed=int(rng.integers(1, 4)), size=128).image)


DRAWN: dict[str, Draw] = {
    "texture": texture,
    "shapes": dead_leaves,
    "gradient": gradient,
    "text": text_page,
    "chart": chart,
    "screen": screen,
    "drawn slice": slice_of_a_body,
    "drawn ultrasound": ultrasound,
    "drawn limb": limb,
    "drawn body part": round_part,
    "phantom": phantom,
}
"""Kind → what draws one."""
