"""Photographs that are installed with scikit-image and scikit-learn, to try things on."""

import numpy as np

NAMES = (
    "astronaut",
    "chelsea",
    "coffee",
    "rocket",
    "motorcycle",
    "china",
    "flower",
    "grass",
    "gravel",
    "brick",
)


def load(name):
    """One of the photographs, uint8 `(height, width, 3)`.

    Raises:
        ValueError: If the name is not one of `NAMES`.
    """
    if name not in NAMES:
        raise ValueError(f"Expected a sample of {', '.join(NAMES)}. Received: {name!r}.")
    if name in ("china", "flower"):
        from sklearn.datasets import load_sample_image  # Deferred: slow to import.

        return np.asarray(load_sample_image(f"{name}.jpg"))
    import skimage.data

    if name == "motorcycle":
        # A stereo pair and its disparity; one eye will do.
        return skimage.data.stereo_motorcycle()[0]
    picture = getattr(skimage.data, name)()
    return picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=2)
