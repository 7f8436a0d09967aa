import numpy as np
import pytest
import tensorflow as tf

from zfkeras.data import images


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (31, 31), (1, 1), (1, 50), (20, 21)])
def test_any_picture_becomes_a_centre_square(rng, shape):
    picture = rng.integers(0, 255, (*shape, 3), dtype=np.uint8)

    square = images.centre_square(tf.constant(picture), 31)

    assert square.shape == (31, 31, 3)
    assert square.dtype == tf.uint8


@pytest.mark.parametrize("shape", [(31, 51), (51, 31)], ids=["wide", "tall"])
def test_the_square_is_cut_from_the_centre(rng, shape):
    picture = rng.integers(0, 255, (2, *shape, 3), dtype=np.uint8)

    square = images.centre_square(tf.constant(picture), 31)

    top, left = (shape[0] - 31) // 2, (shape[1] - 31) // 2
    np.testing.assert_array_equal(square, picture[:, top : top + 31, left : left + 31])


def draws(count, seed=0):
    return tf.constant(np.random.default_rng(seed).random((count, 5)), tf.float32)


@pytest.fixture
def positions():
    """Pictures whose pixels say where they are: row and column."""
    rows, columns = np.mgrid[:20, :20].astype(np.float32)
    one = np.stack([rows, columns, 0 * rows], axis=2)
    return tf.constant(np.tile(one, (400, 1, 1, 1)))


def corners(cropped):
    """First row, first column and whether flipped, of every crop."""
    cropped = cropped.numpy()
    flipped = cropped[:, 0, 0, 1] > cropped[:, 0, -1, 1]
    left = np.minimum(cropped[:, 0, 0, 1], cropped[:, 0, -1, 1])
    return np.stack([cropped[:, 0, 0, 0], left, flipped], axis=1)


def test_ten_crops_are_the_corners_and_the_centre_flipped_or_not(positions):
    cropped = images.crop_for_training(positions, (14, 16), "ten", draws(400))

    places = {tuple(place) for place in corners(cropped)}
    expected = {(row, column) for row in (0, 6) for column in (0, 4)} | {(3, 2)}
    assert places == {(*place, flip) for place in expected for flip in (0, 1)}


def test_random_crops_reach_every_place_and_copy_pixels(positions):
    cropped = images.crop_for_training(positions, (18, 18), "random", draws(400))

    places = corners(cropped)
    for number, (row, column, flipped) in enumerate(places.astype(int)):
        own = positions[number, row : row + 18, column : column + 18].numpy()
        np.testing.assert_array_equal(cropped[number], own[:, ::-1] if flipped else own)
    assert {tuple(place) for place in places[:, :2]} == {
        (row, column) for row in range(3) for column in range(3)
    }


def test_scaled_crops_stay_inside_and_keep_their_area(positions):
    cropped = images.crop_for_training(positions, (8, 8), "scaled", draws(400)).numpy()

    heights = cropped[:, -1, 0, 0] - cropped[:, 0, 0, 0] + 1
    widths = np.abs(cropped[:, 0, -1, 1] - cropped[:, 0, 0, 1]) + 1
    assert cropped.min() >= 0
    assert cropped[..., :2].max() <= 19 + 1e-4
    assert (heights * widths).min() >= images.SMALLEST_SCALED_AREA * 400 * 0.99
    assert heights.std() > 1


@pytest.mark.parametrize("crops", ["ten", "random", "scaled"])
def test_equal_draws_give_equal_crops_in_any_batch(positions, crops):
    first, other = (
        images.crop_for_training(positions, (14, 14), crops, draws(400, seed)) for seed in (2, 3)
    )
    again = tf.concat(
        [
            images.crop_for_training(positions[part], (14, 14), crops, draws(400, 2)[part])
            for part in (slice(0, 150), slice(150, 400))
        ],
        axis=0,
    )

    # A power is rounded otherwise where it does not fill a vector register.
    np.testing.assert_allclose(first, again, atol=1e-5)
    assert np.abs(first - other).max() > 0


@pytest.mark.parametrize("crops", images.CROPS)
@pytest.mark.parametrize("extreme", [0.0, np.nextafter(np.float32(1), np.float32(0))])
def test_no_crop_reaches_past_the_border(crops, extreme):
    """The sampler gives black, without a word, for what lies a rounding error outside."""
    bright = tf.ones((1000, 146, 146, 3))
    chosen = np.random.default_rng(0).random((1000, 5)).astype(np.float32)
    chosen[:500, :2] = extreme
    chosen[250:, 2:4] = extreme

    cropped = images.crop_for_training(bright, (128, 128), crops, tf.constant(chosen))

    np.testing.assert_allclose(cropped, 1, atol=1e-4)


def test_ten_views_are_those_of_numpy(rng):
    inputs = rng.normal(size=(2, 9, 10, 3)).astype(np.float32)

    views = images.ten_views(tf.constant(inputs), (6, 6))

    corners = [inputs[:, a:b, c:d] for a, b in ((0, 6), (3, 9)) for c, d in ((0, 6), (4, 10))]
    expected = [*corners, inputs[:, 1:7, 2:8]]
    expected += [view[:, :, ::-1] for view in expected]
    assert len(views) == 10
    for view, own in zip(views, expected, strict=True):
        np.testing.assert_array_equal(view, own)


def test_centre_crops_agree_with_those_of_evaluation(positions):
    cropped = images.crop_for_training(positions, (14, 16), "centre", draws(400))

    np.testing.assert_array_equal(cropped, images.centre_crop(positions, (14, 16)))
    assert corners(cropped)[0].tolist() == [3, 2, 0]


def test_an_unknown_kind_of_crop_is_named(positions):
    with pytest.raises(ValueError, match="centre, ten, random, scaled.*'two'"):
        images.crop_for_training(positions, (14, 14), "two", draws(400))


@pytest.fixture
def coloured(rng):
    return tf.constant(rng.uniform(-128, 128, (50, 6, 7, 3)), tf.float32)


def test_colour_jitter_scales_and_shifts_each_picture_on_its_own(coloured):
    jittered = images.jitter_colour(coloured, 0.3, draws(50)[:, :3]).numpy()
    before = coloured.numpy()

    grey, jittered_grey = before.mean(axis=3), jittered.mean(axis=3)
    contrast = jittered_grey.std(axis=(1, 2)) / grey.std(axis=(1, 2))
    shift = jittered_grey.mean(axis=(1, 2)) - grey.mean(axis=(1, 2))
    chroma = (before - grey[..., None]).std(axis=(1, 2, 3))
    saturation = (jittered - jittered_grey[..., None]).std(axis=(1, 2, 3)) / chroma / contrast
    for change in (contrast - 1, saturation - 1, shift / 128):
        assert np.abs(change).max() <= 0.3 + 1e-3
        assert change.min() < -0.2
        assert change.max() > 0.2
    assert abs(np.corrcoef(contrast, saturation)[0, 1]) < 0.5


def test_colour_jitter_of_no_strength_changes_nothing(coloured):
    jittered = images.jitter_colour(coloured, 0.0, draws(50)[:, :3])

    np.testing.assert_allclose(jittered, coloured, atol=1e-4)


def test_a_box_is_found_again_in_what_the_network_sees():
    # A third of the width is cut off, then 146 of 160 pixels, then 128 of 146.
    assert images.centre_box((40, 50, 100, 110), (160, 240), 160, (160, 160)) == (40, 10, 100, 70)
    assert images.centre_box((80, 120, 90, 130), (160, 240), 320, (300, 300)) == (
        150,
        150,
        170,
        170,
    )
    assert images.centre_box((0, 0, 160, 240), (160, 240), 146, (128, 100)) == (0, 0, 128, 100)
    top, left, bottom, right = images.centre_box((0, 0, 30, 30), (160, 240), 160, (160, 160))
    assert (top, bottom) == (0, 30) and left == right


def test_a_box_moves_with_the_pixels_in_it(rng):
    picture = np.zeros((90, 140, 3), np.uint8)
    picture[30:60, 50:74] = 255
    square = images.centre_square(tf.constant(picture), 60).numpy()
    seen = images.centre_crop(square, (52, 50))

    top, left, bottom, right = images.centre_box((30, 50, 60, 74), (90, 140), 60, (52, 50))

    inside = np.zeros(seen.shape[:2], bool)
    inside[top:bottom, left:right] = True
    assert seen[inside].mean() > 240 and seen[~inside].mean() < 5


def test_transformations_move_pixels_where_they_should(rng):
    image = rng.uniform(0, 255, (7, 9, 3)).astype(np.float32)
    down, up = images.transform(image, "vertical", [2, -3], np.float32([1, 2, 3]))
    np.testing.assert_allclose(down[2:], image[:-2], rtol=1e-5)
    np.testing.assert_allclose(down[:2], np.broadcast_to([1, 2, 3], (2, 9, 3)), rtol=1e-5)
    np.testing.assert_allclose(up[:4], image[3:], rtol=1e-5)
    (right,) = images.transform(image, "horizontal", [1.5], "edge")
    between = (image[:, :-2] + image[:, 1:-1]) / 2
    np.testing.assert_allclose(right[:, 2:], between, rtol=1e-4)
    np.testing.assert_allclose(right[:, 0], image[:, 0], rtol=1e-5)
    (mirrored,) = images.transform(image, "horizontal", [2], "reflect")
    np.testing.assert_allclose(mirrored[:, :2], image[:, 1::-1], rtol=1e-5)
    square = image[:, :7]
    quarter, half, whole = images.transform(square, "rotation", [90, 180, 360], 0.0)
    np.testing.assert_allclose(quarter, np.rot90(square), atol=0.01)
    np.testing.assert_allclose(half, square[::-1, ::-1], atol=0.01)
    np.testing.assert_array_equal(whole, square)
    (large,) = images.transform(image, "scale", [2], 0.0)
    np.testing.assert_allclose(large[3, 4], image[3, 4], rtol=1e-5)
    np.testing.assert_allclose(large[5, 6], image[4, 5], rtol=1e-5)
    np.testing.assert_allclose(large[3, 5], (image[3, 4] + image[3, 5]) / 2, rtol=1e-5)


def test_transformations_keep_their_border(rng):
    image = rng.uniform(0, 255, (6, 6, 3)).astype(np.float32)
    behind = rng.uniform(0, 255, (6, 6, 3)).astype(np.float32)
    (moved,) = images.transform(image, "vertical", [4], behind)
    np.testing.assert_allclose(moved[:4], behind[:4], rtol=1e-5)
    with pytest.raises(ValueError, match="`kind` must be one of vertical, horizontal, scale"):
        images.transform(image, "shear", [1], "edge")
    with pytest.raises(ValueError, match="Scales must be positive. Received: -1"):
        images.transform(image, "scale", [1, -1], "edge")
    with pytest.raises(ValueError, match="`border` must be edge, reflect or an array"):
        images.transform(image, "scale", [1], "wrap")
