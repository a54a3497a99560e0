"""The dashboard's entry: `streamlit run dashboards/app.py -- --query-url … --alerts-url … --serving-url …`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import streamlit as st

from dashboards.launch import DashboardConfig, parse
from dashboards.shell import choose
from dashboards.sources import Sign, Sources
from dashboards.theme import css, palette
from observability import signing

MARK = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 26 24" width="26" height="24">'
    '<path d="M1 22 L17 3 L17 22 Z" fill="{accent}"/><path d="M19.5 14.5 L25 22 L19.5 22 Z" fill="#E69F00"/></svg>'
)


@st.cache_resource(show_spinner=False)
def connect(config: DashboardConfig) -> Sources:
    """One reader for all sessions of this process."""
    return Sources(config.query_url, config.alerts_url, config.serving_url, sign=_signer(config.secret_file))


def _signer(secret_file: Path | None) -> Sign | None:
    if secret_file is None:
        return None
    secret = secret_file.read_bytes().strip()
    return lambda body: {signing.HEADER: signing.sign(secret, body, time.time())}


def main(argv: list[str]) -> None:
    """Draw the frame, then the page that is open."""
    config = parse(argv)
    colors = palette(config.theme)
    st.set_page_config(page_title="Trimtab", layout="wide", initial_sidebar_state="expanded")
    st.html(css(config.theme))
    st.logo(MARK.format(accent=colors.accent), size="medium")
    pages = Path(__file__).parent / "pages"
    current = st.navigation(
        [
            st.Page(pages / "overview.py", title="Overview", icon=":material/monitoring:", default=True),
            st.Page(pages / "serving.py", title="Serving", icon=":material/bolt:"),
            st.Page(pages / "drift.py", title="Drift", icon=":material/waves:"),
            st.Page(pages / "training.py", title="Training", icon=":material/model_training:"),
            st.Page(pages / "alerts.py", title="Alerts and actions", icon=":material/notifications:"),
        ],
        expanded=True,
    )
    choose(config, connect(config))
    current.run()


if __name__ == "__main__":
    main(sys.argv[1:])
