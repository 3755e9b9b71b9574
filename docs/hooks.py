"""Hooks that MkDocs calls while it builds the site (``hooks`` in mkdocs.yml)."""

from __future__ import annotations

import re
import tempfile
import tomllib
from pathlib import Path

from mkdocs.plugins import event_priority

ROOT = Path(__file__).resolve().parents[1]
_sources: tempfile.TemporaryDirectory | None = None


@event_priority(100)  # before mkdocstrings reads its options
def on_config(config):
    """Show mkdocstrings the package as it is installed: some of its parts are folders beside it.

    The sources are read and not imported, so neither PyTorch nor an installation of nequip-md is needed.
    """
    global _sources
    _sources = tempfile.TemporaryDirectory()
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    package = Path(_sources.name, "nequip_md")
    package.mkdir()
    for path in (ROOT / "nequip_md").iterdir():
        (package / path.name).symlink_to(path)
    for name, folder in setuptools["package-dir"].items():
        if "." in name:
            (package / name.partition(".")[2]).symlink_to(ROOT / folder)
    config.plugins["mkdocstrings"].config["handlers"]["python"]["paths"] = [_sources.name]
    return config


def on_page_content(html, **_):
    """Roles of Sphinx in docstrings (:func:`load`) as code, with a link where the name is on a page."""
    return re.sub(
        r":(?:class|func|meth|mod|attr|data|exc):<code>~?([\w.]+)</code>",
        r'<autoref identifier="\1" optional><code>\1</code></autoref>',
        html,
    )


def on_post_build(**_):
    _sources.cleanup()
