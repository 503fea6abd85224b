"""Changes that the site (mkdocs.yml) makes to pages that are written for readers of the repository."""

import re

OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+(?:src|tests|examples|benchmarks)/[^)]*\)")
"""Links to files that the repository has and the site hasn't."""

SHORT = re.compile(r"(?<!<pre>)<code>([^\s<]{1,36})</code>")
"""Code of one word that fits into a line of a phone."""


def on_page_markdown(markdown: str, **_: object) -> str:
    """Keeps the words of links to code."""
    return OUTSIDE.sub(r"\1", markdown)


def on_page_content(html: str, **_: object) -> str:
    """Marks short code, so that no line ends after the hyphens of a flag (docs/images/site.css)."""
    return SHORT.sub(r'<code class="whole">\1</code>', html)
