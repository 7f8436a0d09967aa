"""What one picture excites in one layer: the strongest feature maps' projections."""

import numpy as np
import streamlit as st

import models
import uploads
from zfkeras import rendering

COLUMNS = 3
MOST_MAPS = 36
ENLARGED = 420

model, layer = models.choose()


@st.cache_data(max_entries=32, show_spinner="Projecting")
def project(version, written, picture, layer, top, _model):
    projections, seen = _model.project_strongest(picture, layer, top)
    return _model.classify(picture), projections, seen


@st.dialog("One feature map", width="large")
def enlarge(projections, seen, index):
    one = slice(index, index + 1)
    sheet = rendering.projection_sheet(
        projections.projections[one], projections.windows[one], seen, size=ENLARGED
    )
    both, whole = st.columns([2, 1])
    both.image(sheet, caption="Projection and patch", width="stretch")
    outlined = rendering.outline(seen, projections.boxes[index])
    whole.image(
        rendering.enlarge(outlined, ENLARGED), caption="Where in the picture", width="stretch"
    )
    top, left, bottom, right = projections.boxes[index]
    st.write(
        f"{layer}, feature map {projections.feature_maps[index]}, "
        f"row {projections.rows[index]}, column {projections.columns[index]}, "
        f"activation {projections.activations[index]:.3f}. "
        f"It sees rows {top} to {bottom - 1} and columns {left} to {right - 1}."
    )


st.title("What this picture excites")

picture = uploads.choose_picture()
most = min(MOST_MAPS, model.feature_map_count(layer))
top = st.slider("Feature maps", 1, most, min(9, most)) if most > 1 else 1
probabilities, projections, seen = project(
    str(model.path), (model.path / "saved_model.pb").stat().st_mtime_ns, picture, layer, top, model
)

left, right = st.columns([1, 2])
left.image(rendering.enlarge(seen, 300), caption="What the network sees")
best = np.argsort(-probabilities, kind="stable")[:5]
right.subheader(f"{model.class_names[best[0]]}, {probabilities[best[0]]:.1%}")
right.dataframe(
    {
        "class": [model.class_names[index] for index in best],
        "probability": [100 * float(probabilities[index]) for index in best],
    },
    column_config={
        "probability": st.column_config.ProgressColumn(format="%.1f %%", min_value=0, max_value=100)
    },
    hide_index=True,
    width="stretch",
)

st.subheader(f"Strongest feature maps of {layer}")
st.caption(
    "Left what made the unit fire, grey where nothing did, contrast normalized one by one; "
    "right the part of the picture that the unit sees."
)
cells = st.columns(COLUMNS)
for index in range(len(projections)):
    one = slice(index, index + 1)
    with cells[index % COLUMNS]:
        st.image(
            rendering.projection_sheet(
                projections.projections[one], projections.windows[one], seen, size=160
            ),
            width="stretch",
        )
        feature_map = projections.feature_maps[index]
        if st.button(
            f"Map {feature_map}: {projections.activations[index]:.2f}",
            key=f"enlarge-{layer}-{feature_map}",
            help="Enlarge",
        ):
            enlarge(projections, seen, index)
