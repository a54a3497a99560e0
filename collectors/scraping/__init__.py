"""What is scraped: configurations, the discovery of targets, relabelling, and how targets are asked."""

from collectors.scraping.client import BadClient, Clients, ClientSettings, Secret, TlsSettings
from collectors.scraping.config import FileDiscovery, HttpDiscovery, Limits, ScrapeConfig, TargetGroup
from collectors.scraping.config_file import BadConfig, read_scrape_configs
from collectors.scraping.discovery import Discovery, GroupFiles
from collectors.scraping.relabel import BadRule, RelabelRule, relabelled
from collectors.scraping.target import BadTarget, DroppedTarget, Pool, Target, pool_of, target_of

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
    "Secret",
    "Target",
    "TargetGroup",
    "TlsSettings",
    "pool_of",
    "read_scrape_configs",
    "relabelled",
    "target_of",
]
