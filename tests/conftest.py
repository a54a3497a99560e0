"""What all tests share: hypothesis without a time limit on an example, as the machines that run them may be busy."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("trimtab", deadline=None)
settings.load_profile("trimtab")
