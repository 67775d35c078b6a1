"""HTML pages that need no other file and ask for none: one frame, style and script for all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def _unbroken(value: Any) -> Any:
    """No line begins with a unit."""
    return value.replace(" %", "\u00a0%") if isinstance(value, str) else value


def render(template: Path, extra: str, **values: Any) -> str:
    """A page.

    Args:
        template: extends `pages.html.j2`, which stands beside this module.
        extra: of `pip install 'keepaug[extra]'`, which brings jinja2.
        values: of the template.

    Raises:
        ImportError: jinja2 is missing.
    """
    try:
        import jinja2
    except ImportError as error:
        raise ImportError(f"the page needs jinja2: pip install 'keepaug[{extra}]'") from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_unbroken,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(**values)
