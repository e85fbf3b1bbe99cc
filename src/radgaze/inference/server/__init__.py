"""A trained run behind HTTP: `radgaze serve`. Needs the extra "serve"."""

from radgaze.inference.server.app import create_app
from radgaze.inference.server.settings import Settings

__all__ = ["Settings", "create_app"]
