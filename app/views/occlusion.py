"""What a square over each part of a picture changes: Figure 7."""

import io

import numpy as np
import streamlit as st

import models
import uploads
from zfkeras import plots, rendering
from zfkeras.choices import FILLS
from zfkeras.occlusion import SIZE, Occluder

POSITIONS = 20  # A side: a second or two of the small network on two cores.

model, layer = models.choose()
network = models.restore(model)


@st.cache_data(max_entries=32, show_spinner=False)
def slide(version, written, picture, layer, size, stride, value, label, _network):
    occluder = Occluder(_network, layer, size, stride)
    deconvnet = _network.deconvnet()
    extent = deconvnet.input_shape[:2]
    seen, inputs = _network.prepare(picture, extent)
    bar = st.progress(0.0, f"{occluder.count} positions")
    done = 0

    def on_batch(count):
        nonlocal done
        done += count
        bar.progress(done / occluder.count)

    found = occluder.slide(seen, value, label=label, on_batch=on_batch)
    bar.empty()
    projection = deconvnet.project_feature_maps(inputs, layer, [found.feature_map])
    return found, seen, rendering.draw_signed(projection.projections[0])


st.title("Which parts of this picture matter")

picture = uploads.choose_picture()
side = min(network.model.input_shape[1:3])
first, second, third, fourth = st.columns(4)
size = first.slider("Side of the square", 1, side, round(SIZE * side), key="size")
coarsest = max(side - size, 1)
stride = (
    second.slider(
        "Step", 1, coarsest, min(-(-(side - size) // (POSITIONS - 1)) or 1, coarsest), key="stride"
    )
    if coarsest > 1
    else 1
)
value = third.selectbox("It shows", FILLS, key="value")
names = ["the most probable one", *network.names]
chosen = fourth.selectbox("Class", range(len(names)), format_func=names.__getitem__, key="class")
found, seen, projection = slide(
    str(model.path),
    (model.path / "saved_model.pb").stat().st_mtime_ns,
    picture,
    layer,
    size,
    stride,
    value,
    None if chosen == 0 else chosen - 1,
    network,
)

probabilities = found.probabilities[..., found.label]
row, column = np.unravel_index(probabilities.argmin(), probabilities.shape)
st.subheader(
    f"{network.names[found.label]}: {found.unoccluded_probabilities[found.label]:.1%}, "
    f"down to {probabilities.min():.1%}"
)
st.caption(
    f"It falls lowest with the square at row {found.rows[row]}, column {found.columns[column]}. "
    f"Of {layer}, feature map {found.feature_map} is the strongest by its sum. "
    "Each position is drawn where the middle of the square is."
)
st.pyplot(plots.occlusion(found, seen, projection, network.names), width="stretch")
numbers = io.BytesIO()
found.write(numbers)
st.download_button("Download the numbers", numbers.getvalue(), "occlusion.npz")
