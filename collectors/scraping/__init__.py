"""What is scraped: configurations, the discovery of targets, relabelling, and how targets are asked."""

from collectors.scraping.client import BadClient, Clients, ClientSettings, Secret, TlsSettings
from collectors.scraping.config import FileDiscovery, HttpDiscovery, Limits, ScrapeConfig, TargetGroup
from collectors.scraping.config_file import BadConfig, ScrapeFile, read_scrape_configs, read_scrape_file
from collectors.scraping.config_text import config_text
from collectors.scraping.discovery import Discovery, GroupFiles
from collectors.scraping.relabel import BadRule, RelabelRule, relabelled
from collectors.scraping.target import BadTarget, DroppedTarget, Pool, Target, pool_of, target_of
from collectors.scraping.watched import WatchedFile

__all__ = [
    "BadClient",
    "BadConfig",
    "BadRule",
    "BadTarget",
    "ClientSettings",
    "Clients",
    "Discovery",
    "DroppedTarget",
    "FileDiscovery",
    "GroupFiles",
    "HttpDiscovery",
    "Limits",
    "Pool",
    "RelabelRule",
    "ScrapeConfig",
    "ScrapeFile",
    "Secret",
    "Target",
    "TargetGroup",
    "TlsSettings",
    "WatchedFile",
    "config_text",
    "pool_of",
    "read_scrape_configs",
    "read_scrape_file",
    "relabelled",
    "target_of",
]
