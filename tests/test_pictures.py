import io

import numpy as np
import pytest
from PIL import Image

from zfkeras.data import pictures
from zfkeras.data.pictures import PictureError, read_picture


@pytest.fixture
def photograph(rng):
    coarse = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8))
    return coarse.resize((80, 60), Image.Resampling.BICUBIC)


def test_a_picture_is_read_as_it_is(tmp_path, photograph):
    photograph.save(tmp_path / "a.png")

    np.testing.assert_array_equal(read_picture(tmp_path / "a.png"), np.asarray(photograph))


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr"])
def test_other_colour_spaces_are_converted(tmp_path, photograph, mode):
    path = tmp_path / "a.tif"
    photograph.convert(mode).save(path)

    read = read_picture(path)

    assert read.shape == (60, 80, 3)
    assert read.dtype == np.uint8
    assert np.abs(read.astype(int).mean() - np.asarray(photograph).mean()) < 25


def test_transparency_lies_on_white(tmp_path):
    Image.new("RGBA", (4, 3), (200, 0, 0, 0)).save(tmp_path / "a.png")

    assert (read_picture(tmp_path / "a.png") == 255).all()


def test_sixteen_bits_are_reduced_to_eight(tmp_path):
    values = np.linspace(0, 65535, 48).reshape(6, 8).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")

    read = read_picture(tmp_path / "a.png")

    np.testing.assert_allclose(read[..., 0], values / 257, atol=0.5)
    np.testing.assert_array_equal(read[..., 0], read[..., 2])


def test_floating_point_pictures_span_the_range(tmp_path):
    Image.fromarray(np.linspace(-3, 9, 48, dtype=np.float32).reshape(6, 8)).save(tmp_path / "a.tif")

    read = read_picture(tmp_path / "a.tif")

    assert (read.min(), read.max()) == (0, 255)


def test_a_single_pixel_is_a_picture(tmp_path):
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "a.png")

    assert read_picture(tmp_path / "a.png").tolist() == [[[1, 2, 3]]]


def test_a_cameras_rotation_is_undone(tmp_path, photograph):
    exif = Image.Exif()
    exif[0x0112] = 6
    photograph.save(tmp_path / "a.png", exif=exif)

    read = read_picture(tmp_path / "a.png")

    np.testing.assert_array_equal(read, np.rot90(np.asarray(photograph), -1))


def test_open_files_are_read_and_named(photograph):
    file = io.BytesIO()
    photograph.save(file, "PNG")

    assert read_picture(file, "upload.png").shape == (60, 80, 3)
    with pytest.raises(PictureError, match=r"^upload\.txt is not a picture"):
        read_picture(io.BytesIO(b"no picture"), "upload.txt")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_truncated_files_give_one_line(tmp_path, photograph, kind, share):
    file = io.BytesIO()
    photograph.save(file, kind)
    path = tmp_path / "broken"
    path.write_bytes(file.getvalue()[: int(len(file.getvalue()) * share)])

    with pytest.raises(PictureError) as raised:
        read_picture(path)

    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_random_damage_never_gives_anything_but_a_picture_or_one_line(tmp_path, photograph, rng):
    for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "DDS"):
        file = io.BytesIO()
        photograph.save(file, kind)
        for _ in range(30):
            damaged = bytearray(file.getvalue())
            for place in rng.integers(0, len(damaged), 8):
                damaged[place] = rng.integers(0, 256)
            try:
                read = read_picture(io.BytesIO(bytes(damaged)), "damaged")
            except PictureError as error:
                assert "\n" not in str(error)
            else:
                assert read.dtype == np.uint8
                assert read.ndim == 3


def test_huge_pictures_are_refused_before_they_are_decoded(tmp_path):
    path = tmp_path / "huge.png"
    Image.new("1", (30_000, 30_000)).save(path)

    with pytest.raises(PictureError, match="huge.png is too large"):
        read_picture(path)


def test_the_limit_is_on_pixels(tmp_path, monkeypatch, photograph):
    monkeypatch.setattr(pictures, "MAX_PIXELS", 80 * 60 - 1)
    photograph.save(tmp_path / "a.png")

    with pytest.raises(PictureError, match="too large: 80 x 60 pixels"):
        read_picture(tmp_path / "a.png")


def test_missing_files_are_named(tmp_path):
    with pytest.raises(PictureError, match="nothing.png cannot be read"):
        read_picture(tmp_path / "nothing.png")
