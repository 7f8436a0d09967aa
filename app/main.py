"""`streamlit run app/main.py`: explore exported models, pictures and galleries. A router."""

import streamlit as st

st.set_page_config(page_title="zfkeras", layout="wide")

st.navigation(
    [
        st.Page("views/projections.py", title="Projections", default=True),
        st.Page("views/occlusion.py", title="Occlusion"),
        st.Page("views/galleries.py", title="Galleries"),
    ]
).run()
