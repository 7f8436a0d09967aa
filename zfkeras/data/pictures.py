"""Reading one picture that a person hands us: hostile until it is proved to be a picture."""

import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

# A decoded picture takes 3 bytes a pixel, and several copies of it live at once.
MAX_PIXELS = 64_000_000

# Pillow warns of large pictures before our limit can speak. Once for all: to catch warnings around
# every call is not safe where sessions of the app read pictures at the same time.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class PictureError(ValueError):
    """A file that cannot be used as a picture; the message says which one and why."""


def read_picture(file, name=None):
    """Reads a picture of any common kind as RGB.

    Greyscale is repeated, transparency laid on white, 16-bit reduced to 8-bit, and a camera's
    rotation applied; of an animation the first picture counts.

    Args:
        file: Path or binary file object.
        name: What to call it in an error; the path if None.

    Returns:
        uint8 `(height, width, 3)`.

    Raises:
        PictureError: If the file is no picture, broken, or has over 64 million pixels.
    """
    name = name or str(file)
    try:
        with Image.open(file) as picture:
            width, height = picture.size
            if width * height > MAX_PIXELS:
                raise PictureError(
                    f"{name} is too large: {width} x {height} pixels. "
                    f"Expected at most {MAX_PIXELS // 1_000_000} million."
                )
            return _as_rgb(picture)
    except (Image.DecompressionBombError, MemoryError) as error:
        raise PictureError(
            f"{name} is too large. Expected at most {MAX_PIXELS // 1_000_000} million pixels."
        ) from error
    except UnidentifiedImageError as error:
        raise PictureError(f"{name} is not a picture. Expected JPEG, PNG or the like.") from error
    except PictureError:
        raise
    except Exception as error:
        # What Pillow raises on broken files depends on the format and on where it breaks.
        raise PictureError(f"{name} cannot be read as a picture: {error}.") from error


def _as_rgb(picture):
    picture.load()
    orientation = picture.getexif().get(0x0112, 1)
    if picture.mode.startswith("I") or picture.mode == "F":
        picture = _as_eight_bit(picture)
    if picture.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    turn = TURNS.get(orientation)
    if turn is not None:
        picture = picture.transpose(turn)
    return np.asarray(picture.convert("RGB"))


def _as_eight_bit(picture):
    values = np.asarray(picture).astype(np.float64)
    if picture.mode == "F":
        low, high = np.nanmin(values), np.nanmax(values)
        values = (values - low) / max(high - low, 1e-12) * 255
    else:
        values = values / 257
    return Image.fromarray(np.clip(np.nan_to_num(values), 0, 255).round().astype(np.uint8))


# The EXIF orientation of a camera held another way, and what undoes it.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
