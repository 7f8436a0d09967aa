"""Exported models for the pages: opened once and shared by all sessions."""

from pathlib import Path

import streamlit as st

from zfkeras import export

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
