"""Changes that the site (mkdocs.yml) makes to pages that are written for readers of the repository."""

import re

OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+(?:src|tests|examples|benchmarks)/[^)]*\)")
"""Links to files that the repository has and the site hasn't."""


def on_page_markdown(markdown: str, **_: object) -> str:
    """Keeps the words of links to code."""
    return OUTSIDE.sub(r"\1", markdown)
