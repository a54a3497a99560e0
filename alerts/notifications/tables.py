"""The tables of notifications: alerts, what was told, what is still to be told, and who tells."""

from __future__ import annotations

import sqlalchemy as sa

from alerts.schema import METADATA

# Alerts that others posted or our own rules fired; `ends_at` resolves them. Times are unix seconds.
ALERTS = sa.Table(
    "posted_alerts",
    METADATA,
    sa.Column("fingerprint", sa.String(16), primary_key=True),
    sa.Column("labels", sa.JSON, nullable=False),
    sa.Column("annotations", sa.JSON, nullable=False),
    sa.Column("starts_at", sa.Double, nullable=False),
    sa.Column("ends_at", sa.Double, nullable=False),
    sa.Column("updated_at", sa.Double, nullable=False),
    sa.Column("timeout", sa.Boolean, nullable=False),  # the sender gave no end: it is the resolve timeout's
    sa.Column("generator_url", sa.Text, nullable=False),
    sa.Column("origin", sa.String(10), nullable=False),  # rules | api
)

# What each integration of a receiver was last told of a group.
NOTIFICATION_LOG = sa.Table(
    "notification_log",
    METADATA,
    sa.Column("integration", sa.String(300), primary_key=True),
    sa.Column("group_hash", sa.String(64), primary_key=True),
    sa.Column("group_key", sa.Text, nullable=False),
    sa.Column("firing", sa.JSON, nullable=False),
    sa.Column("resolved", sa.JSON, nullable=False),
    sa.Column("sent_at", sa.Double, nullable=False),
    sa.Column("expires_at", sa.Double, nullable=False),
)

# Notifications that are decided and not yet delivered, and those that were refused for good.
OUTBOX = sa.Table(
    "notification_outbox",
    METADATA,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("integration", sa.String(300), nullable=False),
    sa.Column("group_id", sa.String(64), nullable=False),
    sa.Column("body", sa.JSON, nullable=False),
    sa.Column("firing", sa.JSON, nullable=False),
    sa.Column("resolved", sa.JSON, nullable=False),
    sa.Column("repeat_seconds", sa.Double, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("deadline", sa.Double, nullable=False),
)

# When each group is looked at next, so that a restart keeps its rhythm.
GROUPS = sa.Table(
    "notification_groups",
    METADATA,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("next_flush", sa.Double, nullable=False),
    sa.Column("flushed", sa.Boolean, nullable=False),
)

# Who tells receivers: one process of those that share the database.
LEASES = sa.Table(
    "leases",
    METADATA,
    sa.Column("name", sa.String(50), primary_key=True),
    sa.Column("holder", sa.String(300), nullable=False),
    sa.Column("expires_at", sa.Double, nullable=False),
)
