"""Changes that the site (mkdocs.yml) makes to pages that are written for readers of the repository."""

import re

OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+(?:src|tests|examples|benchmarks)/[^)]*\)")
"""Links to files that the repository has and the site hasn't."""

SHORT = re.compile(r"(?<!<pre>)<code>([^\s<]{1,36})</code>")
"""Code of one word that fits into a line of a phone."""

CELL = re.compile(r"<(t[hd])>(.*?)</\1>", flags=re.DOTALL)
TAG = re.compile(r"<[^>]+>")
WORDY = 24
"""Letters of a cell that take more than one line of a narrow column."""
NUMBER = re.compile(r"[-+]?\d[^a-z]{0,18}%?|\d+ of \d+")
"""The text of a cell that is a number, with its interval."""


def on_page_markdown(markdown: str, **_: object) -> str:
    """Keeps the words of links to code."""
    return OUTSIDE.sub(r"\1", markdown)


def on_page_content(html: str, **_: object) -> str:
    """Marks what docs/images/site.css treats apart.

    Short code is `whole`, so that no line ends after the hyphens of a flag; a cell with a number too. Cells with many
    words are `wordy`, so that they get more width than numbers.
    """
    return CELL.sub(_cell, SHORT.sub(r'<code class="whole">\1</code>', html))


def _cell(match: re.Match[str]) -> str:
    name, inner = match.groups()
    text = TAG.sub("", inner)
    kind = "whole" if NUMBER.fullmatch(text) else "wordy" if len(text) >= WORDY else ""
    return f'<{name} class="{kind}">{inner}</{name}>' if kind else match[0]
