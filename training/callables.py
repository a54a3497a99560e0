"""Callables by name, as settings and configurations write them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any


def resolve(name: str) -> Callable[..., Any]:
    """The callable named `module:name`. ValueError where it is not there or cannot be called."""
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise ValueError(f"{name!r} names no callable: write module:function")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{name!r} cannot be imported: {error}") from error
    if not callable(found):
        raise ValueError(f"{name!r} is a {type(found).__name__}, which cannot be called")
    return found  # type: ignore[no-any-return]
