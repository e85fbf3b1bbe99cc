"""A page on disk: its template filled in with finished text, whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from radgaze.files import atomic_path
from radgaze.report import figures

__all__ = ["write_page"]


def write_page(name: str, headings: Mapping[str, str], context: Mapping[str, Any], out: Path) -> Path:
    """Fill in ``templates/NAME.html.j2`` and write it to ``out``, a file (``.html``) or the folder of ``NAME.html``.

    ``headings`` are the sections in page order, {key of the context: heading}: what is filled stands in the contents.
    """
    out = Path(out)
    target = out if out.suffix == ".html" else out / f"{name}.html"
    environment = Environment(
        loader=PackageLoader("radgaze.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    contents = [(anchor, heading) for anchor, heading in headings.items() if context[anchor]]
    page = environment.get_template(f"{name}.html.j2").render(context, contents=contents, palette=figures.PALETTE)
    # An id taken from a file name may hold bytes that are not text; the page shows "?" for them.
    with atomic_path(target) as partial:
        partial.write_bytes(page.encode("utf-8", "replace"))
    return target
