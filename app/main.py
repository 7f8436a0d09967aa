"""`streamlit run app/main.py`: explore exported models. A router and the shared sidebar."""

import streamlit as st

import models

st.set_page_config(page_title="zfkeras", layout="wide")

page = st.navigation([st.Page("views/projections.py", title="Projections", default=True)])

with st.sidebar:
    folder = st.text_input("Folder of models", str(models.EXPORTED), key="folder")
    versions = models.versions(folder)
    if not versions:
        st.error(f"{folder} holds no exported model. Expected <name>/<version>/saved_model.pb.")
        st.stop()
    st.selectbox("Model", versions, format_func=models.label, key="version")
    model = models.open_model(st.session_state.version)
    if isinstance(model, str):
        st.error(model)
        st.stop()
    st.session_state.model = model
    st.select_slider("Layer", model.feature_layers, value=model.feature_layers[-1], key="layer")

page.run()
