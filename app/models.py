"""Exported models for the pages: chosen in the sidebar, opened once and shared by all sessions."""

from pathlib import Path

import streamlit as st

from zfkeras import export
from zfkeras.trained import Trained

EXPORTED = Path(__file__).parents[1] / "exported"


def versions(folder):
    """Paths of the exported models in a folder, newest version of each name first."""
    return sorted(export.find(folder), key=lambda path: (path.parent.name, -int(path.name)))


def label(version):
    return f"{version.parent.name}, version {version.name}"


@st.cache_resource(max_entries=4, show_spinner="Opening the model")
def _open(version, written):
    return export.load(version)


def open_model(version):
    """The model, or, where it cannot be opened, the reason as one line of text."""
    try:
        # A version that was written again is another model.
        return _open(version, (version / "saved_model.pb").stat().st_mtime_ns)
    except (export.ModelError, OSError) as error:
        return str(error)


@st.cache_resource(max_entries=4, show_spinner="Opening the network")
def _restore(version, written, _model):
    return Trained(*_model.restore(), _model.class_names)


def restore(model):
    """The `Trained` network of an exported model, opened once and shared by all sessions."""
    return _restore(model.path, (model.path / "saved_model.pb").stat().st_mtime_ns, model)


def choose():
    """The model and the layer chosen in the sidebar; stops the page where there is none."""
    with st.sidebar:
        folder = st.text_input("Folder of models", str(EXPORTED), key="folder")
        found = versions(folder)
        if not found:
            st.error(f"{folder} holds no exported model. Expected <name>/<version>/saved_model.pb.")
            st.stop()
        st.selectbox("Model", found, format_func=label, key="version")
        model = open_model(st.session_state.version)
        if isinstance(model, str):
            st.error(model)
            st.stop()
        layers = model.feature_layers
        layer = st.select_slider("Layer", layers, value=layers[-1], key="layer")
    return model, layer
