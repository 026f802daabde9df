"""Boxes, labels, cut-outs, the change map and maps of classes, drawn on copies of RGB pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Integer, Real, UInt8
from PIL import Image, ImageDraw, ImageFont

RGB = UInt8[np.ndarray, "height width 3"]
Colour = tuple[int, int, int]

GREEN: Colour = (60, 220, 90)
ORANGE: Colour = (255, 140, 0)
LUMA = (0.299, 0.587, 0.114)  # how bright red, green and blue look (ITU-R BT.601)


def draw_boxes(
    rgb: RGB, boxes: Real[np.ndarray, "boxes 4"], labels: Sequence[str] = (), colour: Colour = GREEN
) -> RGB:
    """Outlines boxes; a label stands on its box, or inside where there is no room above.

    Args:
        rgb: the picture.
        boxes: left, top, right, bottom in pixels; parts outside the picture are cut off.
        labels: one for each box, or none at all.
        colour: of the outline and of the label's ground.
    """
    image = Image.fromarray(rgb)
    pen = ImageDraw.Draw(image)
    line = max(1, round(min(rgb.shape[:2]) / 200))
    for number, (left, top, right, bottom) in enumerate(np.asarray(boxes, float).round().tolist()):
        # Pillow refuses a corner that lies left of or above its opposite.
        pen.rectangle((left, top, max(left, right), max(top, bottom)), outline=colour, width=line)
        if labels:
            _write(pen, image, (left, top), labels[number], colour)
    return np.asarray(image)


def draw_caption(rgb: RGB, text: str, colour: Colour = ORANGE) -> RGB:
    """Writes a line of text into the lower left corner."""
    image = Image.fromarray(rgb)
    _write(ImageDraw.Draw(image), image, (0, image.height), text, colour)
    return np.asarray(image)


def overlay_mask(
    rgb: RGB, mask: Bool[np.ndarray, "rows columns"], colour: Colour = ORANGE, opacity: float = 0.45
) -> RGB:
    """Tints the pixels where `mask` is set; a mask of another size is stretched over the picture.

    Args:
        rgb: the picture.
        mask: any size; each entry stands for an equal share of the picture's height and width.
        colour: of the tint.
        opacity: 0 leaves the picture as it is, 1 hides it under the colour.
    """
    rows = np.arange(rgb.shape[0]) * mask.shape[0] // rgb.shape[0]
    columns = np.arange(rgb.shape[1]) * mask.shape[1] // rgb.shape[1]
    marked = mask[rows[:, None], columns]
    tinted = rgb.copy()
    tinted[marked] = ((1 - opacity) * rgb[marked] + opacity * np.array(colour)).round()
    return tinted


def cut_out(rgb: RGB, opacity: Float[np.ndarray, "height width"], ground: Colour = GREEN) -> RGB:
    """The picture on a plain ground, as far as it is opaque.

    Args:
        rgb: the picture.
        opacity: of each pixel: 0 shows the ground, 1 the picture.
        ground: its colour.
    """
    share = opacity[..., None]
    return (share * rgb + (1 - share) * np.array(ground)).round().astype(np.uint8)


def draw_classes(
    rgb: RGB,
    classes: Integer[np.ndarray, "height width"],
    colours: Mapping[str, Colour],
    opacity: float = 0.5,
    min_share: float = 0.01,
) -> RGB:
    """Tints every pixel with the colour of its class, and lists the classes in the upper left corner, largest first.

    Args:
        rgb: the picture.
        classes: for each pixel the position of its class in `colours`.
        colours: each class's name and colour.
        opacity: 0 leaves the picture as it is, 1 hides it under the colours.
        min_share: a class with a smaller share of the picture is tinted, but not listed.
    """
    names, palette = list(colours), np.array(list(colours.values()))
    tinted = ((1 - opacity) * rgb + opacity * palette[classes]).round().astype(np.uint8)
    shares = np.bincount(classes.ravel(), minlength=len(names)) / classes.size
    listed = [names[number] for number in np.argsort(-shares, kind="stable") if shares[number] >= min_share]
    image = Image.fromarray(tinted)
    _list_names(image, {name: colours[name] for name in listed})
    return np.asarray(image)


def _list_names(image: Image.Image, colours: Mapping[str, Colour]) -> None:
    """One row for each name on its colour, as wide as the longest, from the upper left corner down."""
    size = max(10, image.height // 28)
    font, pen = ImageFont.load_default(size=size), ImageDraw.Draw(image)
    width = max((pen.textlength(name, font=font) for name in colours), default=0) + size
    for row, (name, colour) in enumerate(colours.items()):
        top = row * (size + 6)
        pen.rectangle((0, top, width, top + size + 5), fill=colour)
        ink = (0, 0, 0) if np.dot(colour, LUMA) > 110 else (255, 255, 255)
        pen.text((size / 2, top + size / 2 + 3), name, fill=ink, font=font, anchor="lm")


def _write(
    pen: ImageDraw.ImageDraw, image: Image.Image, corner: tuple[float, float], text: str, ground: Colour
) -> None:
    """Dark text on `ground` with its lower left corner at `corner`, moved so that it is inside the image."""
    font = ImageFont.load_default(size=max(10, image.height // 28))
    left, top, right, bottom = (round(side) for side in pen.textbbox((0, 0), text, font=font))
    width, height = right - left + 6, bottom - top + 6
    x = max(0, min(round(corner[0]), image.width - width))
    y = max(0, min(round(corner[1]) - height, image.height - height))
    pen.rectangle((x, y, x + width, y + height), fill=ground)
    pen.text((x + 3 - left, y + 3 - top), text, fill=(0, 0, 0), font=font)
