"""The picture that a page looks at: a sample, or one of the visitor's own."""

import streamlit as st

from zfkeras.data import pictures, samples


@st.cache_data(max_entries=8, show_spinner=False)
def load_sample(name):
    return samples.load(name)


def choose_picture():
    """The picture chosen, uint8 `(height, width, 3)`; stops the page where it cannot be read."""
    chosen, uploaded = st.columns(2)
    name = chosen.selectbox("Sample", samples.NAMES, key="sample")
    upload = uploaded.file_uploader("Or a picture of yours")
    if upload is None:
        return load_sample(name)
    try:
        return pictures.read_picture(upload, name=upload.name)
    except pictures.PictureError as error:
        st.error(str(error))
        st.stop()
