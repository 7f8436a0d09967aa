"""`streamlit run app/main.py`: explore exported models and galleries. A router."""

import streamlit as st

st.set_page_config(page_title="zfkeras", layout="wide")

st.navigation(
    [
        st.Page("views/projections.py", title="Projections", default=True),
        st.Page("views/galleries.py", title="Galleries"),
    ]
).run()
