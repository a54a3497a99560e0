"""The registry of models that the settings name, opened for a command."""

from __future__ import annotations

from serving.errors import RegistryError
from serving.registry import Registry
from trimtab.commands.options import fail, make_data_folder
from trimtab.settings import Settings


def registry(settings: Settings) -> Registry:
    """The registry, its folder made where it is not there. Ends the command where its database cannot be used."""
    make_data_folder(settings)
    try:
        return Registry(settings.registry_url, settings.artifacts)
    except RegistryError as error:
        fail(f"{error}; see `registry` under [serving]")
