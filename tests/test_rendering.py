import numpy as np
import pytest
from PIL import Image

from zfkeras import rendering


def test_zero_is_grey_and_the_largest_magnitude_is_full_contrast():
    projection = np.zeros((4, 4, 3))
    projection[0, 0, 0], projection[3, 3, 2] = 5.0, -5.0

    drawn = rendering.draw_signed(projection)

    assert drawn[0, 0].tolist() == [255, 128, 128]
    assert drawn[3, 3].tolist() == [128, 128, 1]
    assert (drawn[1:3] == 128).all()


def test_drawing_does_not_depend_on_scale(rng):
    projection = rng.normal(size=(9, 9, 3))

    np.testing.assert_array_equal(
        rendering.draw_signed(projection), rendering.draw_signed(projection * 1e-3)
    )


def test_silence_is_grey():
    assert (rendering.draw_signed(np.zeros((2, 2, 3))) == rendering.GREY).all()


def test_cutting_past_the_border_fills_with_grey(rng):
    image = rng.integers(0, 255, (5, 6, 3), dtype=np.uint8)

    part = rendering.cut(image, (-2, 4, 3, 9))

    assert part.shape == (5, 5, 3)
    np.testing.assert_array_equal(part[2:, :2], image[:3, 4:])
    assert (part[:2] == rendering.GREY).all()
    assert (part[:, 2:] == rendering.GREY).all()


def test_sheets_hold_their_tiles_in_reading_order():
    tiles = [np.full((2, 3, 3), value, np.uint8) for value in (10, 20, 30)]

    sheet = rendering.contact_sheet(tiles, columns=2, gap=1, background=255)

    assert sheet.shape == (5, 7, 3)
    assert sheet[0, 0, 0] == 10
    assert sheet[0, 4, 0] == 20
    assert sheet[3, 0, 0] == 30
    assert (sheet[3:, 4:] == 255).all()
    assert (sheet[2] == 255).all()


def test_small_windows_are_enlarged_in_hard_squares(rng):
    patch = rng.integers(0, 255, (7, 7, 3), dtype=np.uint8)

    enlarged = rendering.enlarge(patch, 70)

    np.testing.assert_array_equal(enlarged, patch.repeat(10, 0).repeat(10, 1))


def test_projections_lie_left_of_the_patches_that_caused_them(rng):
    seen = rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)
    projections = np.zeros((4, 40, 40, 3))
    windows = np.array([(0, 0, 10, 10)] * 4)

    sheet = rendering.projection_sheet(projections, windows, seen)

    half = (sheet.shape[1] - 4 * rendering.GAP) // 2
    tiles = rendering.TILE
    assert (sheet[:tiles, :tiles] == rendering.GREY).all()
    np.testing.assert_array_equal(
        sheet[:tiles, -half:][:, :tiles], rendering.enlarge(seen[:10, :10])
    )


def test_an_outline_touches_only_the_border_of_its_box():
    image = np.zeros((6, 7, 3), np.uint8)

    drawn = rendering.outline(image, (1, 2, 5, 6), colour=(9, 9, 9))

    expected = np.zeros((6, 7), bool)
    expected[1:5, 2:6] = True
    expected[2:4, 3:5] = False
    np.testing.assert_array_equal(drawn[..., 0] == 9, expected)
    assert not image.any()


def test_saving_replaces_the_file_whole(tmp_path):
    path = tmp_path / "new folder" / "sheet.png"
    rendering.save(np.zeros((3, 4, 3), np.uint8), path)

    rendering.save(np.full((3, 4, 3), 7, np.uint8), path)

    assert np.asarray(Image.open(path)).max() == 7
    assert [file.name for file in path.parent.iterdir()] == ["sheet.png"]


def test_an_unknown_format_is_refused_before_anything_is_lost(tmp_path):
    path = tmp_path / "sheet.txt"
    path.write_text("kept")

    with pytest.raises(ValueError, match="image file such as sheet.png"):
        rendering.save(np.zeros((3, 4, 3), np.uint8), path)

    assert path.read_text() == "kept"
