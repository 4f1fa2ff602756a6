"""Pages around X-rays, as slides, papers, screenshots, scanners and collimators make them, for ``bench.polarity``."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

Layout = Callable[[Image.Image, np.random.Generator], Image.Image]
"""An X-ray in mode ``L`` and random numbers → the X-ray on a page."""


def on_page(film: Image.Image, size: tuple[float, float], place: tuple[float, float], gray: int) -> Image.Image:
    """The X-ray on a page of one gray; size and place in pixels, no smaller than the X-ray."""
    page = Image.new("L", (max(round(size[0]), film.width), max(round(size[1]), film.height)), gray)
    page.paste(film, (round(place[0]), round(place[1])))
    return page


def wide(gray: int) -> Layout:
    """A page of 16:9, the X-ray in the middle."""

    def layout(film: Image.Image, rng: np.random.Generator) -> Image.Image:
        width, height = max(film.width, film.height * 16 / 9), max(film.height, film.width * 9 / 16)
        return on_page(film, (width, height), ((width - film.width) / 2, (height - film.height) / 2), gray)

    return layout


def square(gray: int) -> Layout:
    """Padded to a square, by a quarter at least."""

    def layout(film: Image.Image, rng: np.random.Generator) -> Image.Image:
        side = max(*film.size, 1.25 * min(film.size))
        return on_page(film, (side, side), ((side - film.width) / 2, (side - film.height) / 2), gray)

    return layout


def margins(gray: int, quality: int | None = None) -> Layout:
    """Margins of 5 to 40 % on each side, perhaps as JPEG."""

    def layout(film: Image.Image, rng: np.random.Generator) -> Image.Image:
        left, upper, right, lower = rng.uniform(0.05, 0.4, 4)
        size = film.width * (1 + left + right), film.height * (1 + upper + lower)
        page = on_page(film, size, (film.width * left, film.height * upper), gray)
        return page if quality is None else as_jpeg(page, quality)

    return layout


def one_margin(gray: int) -> Layout:
    """A margin of 15 to 80 % on one side."""

    def layout(film: Image.Image, rng: np.random.Generator) -> Image.Image:
        border = [0, 0, 0, 0]
        side = int(rng.integers(4))
        border[side] = round(float(rng.uniform(0.15, 0.8)) * film.size[side % 2])
        return ImageOps.expand(film, (border[0], border[1], border[2], border[3]), gray)

    return layout


def noisy(gray: int) -> Layout:
    """A scanner's uneven margins."""

    def layout(film: Image.Image, rng: np.random.Generator) -> Image.Image:
        noise = rng.normal(gray, 3, (round(film.height * 1.2), round(film.width * 1.5)))
        page = Image.fromarray(np.clip(noise, 0, 255).astype(np.uint8))
        page.paste(film, ((page.width - film.width) // 2, (page.height - film.height) // 2))
        return page

    return layout


def portrait(film: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A page of a paper with title, caption and page number."""
    width, height = film.width / 0.8, max(film.width / 0.8 * 1.414, film.height * 1.3)
    page = on_page(film, (width, height), (film.width / 8, (height - film.height) * 0.4), 255)
    write(page, 0.1, 0.03, "Case 12: chest radiograph", 0.05 * width, 0)
    write(page, 0.1, 0.92, "Figure 3. PA view at admission", 0.035 * width, 60)
    write(page, 0.9, 0.96, "17", 0.03 * width, 0)
    return as_jpeg(page, 85)


def slide(gray: int, ink: int) -> Layout:
    """A slide with title, the X-ray on one side, notes on the other, and a number."""

    def layout(film: Image.Image, rng: np.random.Generator) -> Image.Image:
        height = film.height / 0.7
        width = max(height * 16 / 9, film.width * 2)
        left = rng.random() < 0.5
        page = on_page(film, (width, height), (0.05 * width if left else 0.95 * width - film.width, 0.22 * height), gray)
        write(page, 0.05, 0.05, "Community acquired pneumonia", 0.09 * height, ink)
        for line, note in enumerate(["Fever 39.5", "Cough, 3 days", "CRP 120 mg/l"]):
            write(page, 0.1 + film.width / width if left else 0.05, 0.3 + 0.12 * line, note, 0.05 * height, ink)
        write(page, 0.95, 0.93, "7", 0.04 * height, ink)
        return as_jpeg(page, 80)

    return layout


def screenshot(gray: int) -> Layout:
    """A viewer: tools above, thumbnails at the left, numbers at the right."""

    def layout(film: Image.Image, rng: np.random.Generator) -> Image.Image:
        page = on_page(film, (film.width * 1.6, film.height * 1.25), (film.width * 0.32, film.height * 0.16), gray)
        width, height = page.size
        draw = ImageDraw.Draw(page)
        draw.rectangle((0, 0, width, height * 0.07), fill=70)
        for tool in range(12):
            left = 10 + tool * width // 14
            draw.rectangle((left, height * 0.015, left + height * 0.04, height * 0.055), fill=int(rng.integers(120, 230)))
        draw.rectangle((0, height * 0.07, width * 0.12, height), fill=52)
        for view in range(5):
            upper = height * (0.1 + 0.17 * view)
            draw.rectangle((width * 0.02, upper, width * 0.1, upper + height * 0.13), outline=90, fill=20)
        write(page, 0.84, 0.2, "W 2048", 0.035 * height, 255 - gray)
        write(page, 0.84, 0.25, "L 1024", 0.035 * height, 255 - gray)
        return as_jpeg(page, 85)

    return layout


def rotated(gray: int, around: Layout | None = None) -> Layout:
    """A film that lies 3 to 12 degrees askew, perhaps on a page."""

    def layout(film: Image.Image, rng: np.random.Generator) -> Image.Image:
        angle = float(rng.uniform(3, 12)) * (1 if rng.random() < 0.5 else -1)
        askew = film.rotate(angle, Image.Resampling.BICUBIC, expand=True, fillcolor=gray)
        return around(askew, rng) if around else askew

    return layout


def collimated(gray: int, round_by: float) -> Layout:
    """Rounded corners; a circle if they are as large as half the side."""

    def layout(film: Image.Image, rng: np.random.Generator) -> Image.Image:
        mask = Image.new("L", film.size, 0)
        border = 0.03 if round_by < 0.5 else -0.08
        box = [border * film.width, border * film.height, (1 - border) * film.width, (1 - border) * film.height]
        draw = ImageDraw.Draw(mask)
        if round_by < 0.5:
            draw.rounded_rectangle(box, round_by * min(film.size), fill=255)
        else:
            draw.ellipse(box, fill=255)
        return Image.composite(film, Image.new("L", film.size, gray), mask)

    return layout


def framed(*borders: tuple[float, int]) -> Layout:
    """Borders around each other, innermost first: share of the X-ray's width, gray."""

    def layout(film: Image.Image, rng: np.random.Generator) -> Image.Image:
        page = film
        for share, gray in borders:
            page = ImageOps.expand(page, max(2, round(share * film.width)), gray)
        return page

    return layout


def part(left: float, upper: float, right: float, lower: float) -> Layout:
    """A part of an X-ray, in shares of its sides."""

    def layout(film: Image.Image, rng: np.random.Generator) -> Image.Image:
        return film.crop(
            (round(left * film.width), round(upper * film.height), round(right * film.width), round(lower * film.height))
        )

    return layout


def write(page: Image.Image, x: float, y: float, text: str, size: float, ink: int) -> None:
    """Text on a page; place in shares of its sides, size in pixels."""
    font = ImageFont.load_default(max(size, 6))
    ImageDraw.Draw(page).text((x * page.width, y * page.height), text, fill=ink, font=font)


def as_jpeg(page: Image.Image, quality: int) -> Image.Image:
    """The page as it comes out of a JPEG file."""
    file = io.BytesIO()
    page.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("L")


LAYOUTS: dict[str, Layout] = {
    "white page 16:9": wide(255),
    "black page 16:9": wide(0),
    "gray page 16:9": wide(128),
    "black margins": margins(0),
    "white margins, JPEG": margins(255, 85),
    "gray margins": margins(90),
    "white square": square(255),
    "black square": square(0),
    "gray square": square(200),
    "one white margin": one_margin(255),
    "one black margin": one_margin(0),
    "one gray margin": one_margin(110),
    "uneven white margins": noisy(252),
    "uneven black margins": noisy(4),
    "portrait page with text": portrait,
    "white slide with text": slide(255, 0),
    "dark slide with text": slide(20, 240),
    "blue slide with text": slide(90, 255),
    "dark viewer": screenshot(38),
    "light viewer": screenshot(225),
    "askew on black": rotated(0),
    "askew on white": rotated(255),
    "askew, black and then white": rotated(0, margins(255)),
    "rounded corners, black": collimated(0, 0.15),
    "rounded corners, white": collimated(255, 0.15),
    "circle, black": collimated(0, 0.5),
    "white line, black margin": framed((0.01, 255), (0.12, 0)),
    "black frame, white margin": framed((0.06, 0), (0.15, 255)),
}

PARTS: dict[str, Layout] = {
    "left half": part(0, 0, 0.5, 1),
    "right half": part(0.5, 0, 1, 1),
    "upper half": part(0, 0, 1, 0.5),
    "lower half": part(0, 0.5, 1, 1),
    "middle": part(0.2, 0.2, 0.8, 0.8),
    "a quarter": part(0, 0, 0.5, 0.5),
}
