"""For tests: a stack that tells a story over real HTTP, and a browser that walks every page."""

from dashboards.testing.browser import Problem, screenshots, walk
from dashboards.testing.stack import FakeStack

__all__ = ["FakeStack", "Problem", "screenshots", "walk"]
