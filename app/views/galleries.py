"""What every feature map looks for: a gallery that `zfkeras gallery` made."""

import re
from pathlib import Path

import numpy as np
import streamlit as st

from zfkeras import gallery

DEFAULT = Path(__file__).parents[2] / "gallery"
MAPS_ON_A_PAGE = 12
COLUMNS = 2


@st.cache_data(max_entries=16, show_spinner=False)
def numbers_of(path, written, layer, _opened):
    return _opened.numbers(layer)


def plain(text):
    """Text that means nothing in Markdown."""
    return re.sub(r"([\\`*_{}\[\]()#+.!|$~:<>-])", r"\\\1", text)


@st.dialog("One feature map", width="large")
def enlarge(opened, layer, numbers, index):
    feature_map = numbers["feature_maps"][index]
    st.image(str(opened.sheet(layer, feature_map)), width="stretch")
    fired = numbers["pictures"][index] >= 0
    shown = {"picture": [Path(name).name for name in numbers["names"][index][fired]]}
    for name in ("activations", "rows", "columns"):
        shown[name.rstrip("s")] = numbers[name][index][fired]
    for side, name in enumerate(("top", "left", "bottom", "right")):
        shown[name] = numbers["boxes"][index][fired][:, side]
    st.caption(
        f"{plain(layer)}, feature map {feature_map}. Strongest first, in reading order; "
        "the last four columns are the pixels that the unit sees."
    )
    st.dataframe(shown, hide_index=True, width="stretch")


st.title("What every feature map looks for")

with st.sidebar:
    folder = st.text_input("Folder of a gallery", str(DEFAULT), key="gallery")
try:
    opened = gallery.load(folder)
except gallery.GalleryError as error:
    st.error(str(error))
    st.code("zfkeras gallery exported/zfnet-imagenette --dataset shapes --output gallery", None)
    st.stop()

with st.sidebar:
    layer = st.selectbox("Layer", opened.layers, key="gallery-layer")
    by_strength = st.toggle("Strongest maps first", key="by-strength")
try:
    written = (opened.path / gallery.SETTINGS).stat().st_mtime_ns
    numbers = numbers_of(str(opened.path), written, layer, opened)
except gallery.GalleryError as error:
    st.error(str(error))
    st.stop()
strongest = numbers["activations"][:, 0]
order = np.argsort(-strongest, kind="stable") if by_strength else np.arange(len(strongest))
# A map that no picture excites has nothing to show.
alive = order[strongest[order] > 0]

count = opened.settings["pictures"] - len(opened.findings.get("unreadable", ()))
st.caption(
    f"{count:,} pictures of {plain(opened.settings['dataset'])}, of each feature map the "
    f"{opened.settings['top_k']} strongest units. Left what made them fire, right the patches "
    f"that did. {len(order) - len(alive)} of {len(order)} feature maps of {plain(layer)} never "
    "fired."
)
pages = max(-(-len(alive) // MAPS_ON_A_PAGE), 1)
page = st.number_input("Page", 1, pages, key=f"page-{layer}") if pages > 1 else 1
cells = st.columns(COLUMNS)
for place, index in enumerate(alive[(page - 1) * MAPS_ON_A_PAGE : page * MAPS_ON_A_PAGE]):
    feature_map = numbers["feature_maps"][index]
    with cells[place % COLUMNS]:
        st.image(str(opened.sheet(layer, feature_map)), width="stretch")
        if st.button(
            f"Map {feature_map}: {strongest[index]:.2f}",
            key=f"map-{layer}-{feature_map}",
            help="Enlarge",
        ):
            enlarge(opened, layer, numbers, index)
