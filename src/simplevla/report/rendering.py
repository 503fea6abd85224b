"""HTML of the reports from templates in this folder, which share one head and style (base.html.jinja)."""

import base64
from typing import Any

import jinja2
from markupsafe import Markup, escape


def image_address(svg: str) -> str:
    """An SVG picture as an address that holds it."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


def breakable(name: str) -> Markup:
    """A name that a narrow screen may break after each underscore."""
    return escape(name).replace("_", Markup("_<wbr>"))


TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("simplevla.report", "."),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.globals["image"] = image_address
TEMPLATES.filters["breakable"] = breakable


def render(template: str, **values: Any) -> bytes:
    """The page that `template` makes of `values`, one file that needs no other."""
    return TEMPLATES.get_template(template).render(**values).encode()
