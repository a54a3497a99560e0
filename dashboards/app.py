"""The dashboard's entry: `streamlit run dashboards/app.py -- --query-url … --alerts-url … --serving-url …`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import streamlit as st

from dashboards.launch import DashboardConfig, parse
from dashboards.shell import choose
from dashboards.sources import Sign, Sources
from dashboards.theme import css
from observability import signing

MARK = Path(__file__).with_name("mark.svg")


@st.cache_resource(show_spinner=False)
def connect(config: DashboardConfig) -> Sources:
    """One reader for all sessions of this process."""
    return Sources(
        config.query_url,
        config.alerts_url,
        config.serving_url,
        collector_url=config.collector_url,
        sign=_signer(config.secret_file),
        patience_seconds=config.patience_seconds,
    )


def _signer(secret_file: Path | None) -> Sign | None:
    if secret_file is None:
        return None
    secret = secret_file.read_bytes().strip()
    return lambda body: {signing.HEADER: signing.sign(secret, body, time.time())}


def main(argv: list[str]) -> None:
    """Draw the frame, then the page that is open."""
    config = parse(argv)
    st.html(css(config.theme))
    st.logo(str(MARK), size="medium")
    # Not named `pages`: Streamlit runs files of a folder of that name by themselves, without this frame.
    pages = Path(__file__).parent / "views"
    current = st.navigation(
        [
            st.Page(pages / "overview.py", title="Overview", default=True),
            st.Page(pages / "serving.py", title="Serving"),
            st.Page(pages / "drift.py", title="Drift"),
            st.Page(pages / "quality.py", title="Data quality"),
            st.Page(pages / "training.py", title="Training"),
            st.Page(pages / "releases.py", title="Releases"),
            st.Page(pages / "alerts.py", title="Alerts and actions"),
        ],
        expanded=True,
    )
    # Pages have no Material icons: the browser would fetch each from Google to show it in its tab.
    st.set_page_config(
        page_title=f"{current.title} · Trimtab", page_icon=str(MARK), layout="wide", initial_sidebar_state="auto"
    )
    choose(config, connect(config))
    current.run()


if __name__ == "__main__":
    main(sys.argv[1:])
