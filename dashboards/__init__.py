"""SHOW: the Streamlit dashboard and the Grafana export. Reads the services over HTTP; changes go through their APIs."""

from dashboards.launch import DashboardConfig, command

__all__ = ["DashboardConfig", "command"]
