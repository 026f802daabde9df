"""Drawing touches what it should, leaves the rest, and never the picture it was given."""

import numpy as np
import pytest

from deltajax.draw import GREEN, ORANGE, draw_boxes, draw_caption, draw_classes, overlay_mask


@pytest.fixture
def rgb() -> np.ndarray:
    picture = np.full((120, 160, 3), 90, np.uint8)
    picture.flags.writeable = False
    return picture


def changed(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    assert after.shape == before.shape
    assert after.dtype == np.uint8
    return (before != after).any(axis=-1)


def test_a_box_is_an_outline(rgb):
    drawn = draw_boxes(rgb, np.array([[40.2, 30, 100, 90]]))
    touched = changed(rgb, drawn)
    assert tuple(drawn[30, 70]) == GREEN
    assert not touched[40:80, 50:90].any()
    rows, columns = np.nonzero(touched)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (30, 90, 40, 100)


@pytest.mark.parametrize(
    "box", [(-30, -30, 40, 40), (150, 100, 400, 400), (60, 60, 50, 50), (500, 500, 600, 600)]
)
def test_boxes_may_reach_outside_or_be_inside_out(rgb, box):
    draw_boxes(rgb, np.array([box], np.float32), ["face 0.99"])


def test_no_boxes_no_change(rgb):
    assert not changed(rgb, draw_boxes(rgb, np.zeros((0, 4)))).any()


@pytest.mark.parametrize("corner", [(70, 60), (0, 0), (150, 0), (155, 118)])
def test_a_label_stays_inside_the_picture_and_is_readable(rgb, corner):
    left, top = corner
    without = draw_boxes(rgb, np.array([[left, top, left + 4, top + 1]]))
    label = changed(without, draw_boxes(rgb, np.array([[left, top, left + 4, top + 1]]), ["0.97"]))
    rows, columns = np.nonzero(label)
    assert np.ptp(rows) >= 10
    assert np.ptp(columns) >= 20


def test_a_caption_is_in_the_lower_left(rgb):
    rows, columns = np.nonzero(changed(rgb, draw_caption(rgb, "changed 4 %")))
    assert rows.min() > 90
    assert rows.max() == 119
    assert columns.min() == 0
    assert columns.max() < 120


def test_the_mask_is_stretched_over_the_picture(rgb):
    mask = np.zeros((3, 4), bool)
    mask[1, 2] = True
    touched = changed(rgb, overlay_mask(rgb, mask))
    assert touched[40:80, 80:120].all()
    assert touched.sum() == 40 * 40


@pytest.mark.parametrize(("opacity", "expected"), [(0, (90, 90, 90)), (1, ORANGE), (0.5, (172, 115, 45))])
def test_opacity_mixes(rgb, opacity, expected):
    drawn = overlay_mask(rgb, np.ones((1, 1), bool), opacity=opacity)
    assert np.abs(drawn[5, 5].astype(int) - expected).max() <= 1


def test_a_finer_mask_than_the_picture_is_taken(rgb):
    assert changed(rgb, overlay_mask(rgb, np.ones((480, 640), bool))).all()


def test_classes_are_tinted_and_the_large_ones_listed(rgb):
    colours = {"night": (0, 0, 10), "noon": (250, 250, 210), "dusk": (200, 100, 50), "dawn": (1, 2, 3)}
    classes = np.ones((120, 160), np.uint8)
    classes[:, 120:] = 0
    classes[119, 150:] = 2  # ten pixels are too few to be listed
    drawn = draw_classes(rgb, classes, colours, opacity=0.5)
    changed(rgb, drawn)
    for row, column, name in [(110, 60, "noon"), (60, 159, "night"), (119, 155, "dusk")]:
        np.testing.assert_array_equal(drawn[row, column], 45 + np.array(colours[name]) / 2)
    rows = 16 * np.arange(2)  # letters of ten pixels and three on either side
    np.testing.assert_array_equal(drawn[rows, 0], [colours["noon"], colours["night"]])
    np.testing.assert_array_equal(drawn[32, 0], 45 + np.array(colours["noon"]) / 2)
    legend = drawn[:32].astype(int).sum(axis=-1)
    assert legend[:16].min() < 100  # dark ink on light
    assert legend[16:, :60].max() > 700  # and light ink on dark
    np.testing.assert_array_equal(draw_classes(rgb, classes, colours, opacity=0, min_share=2), rgb)
