"""What the site's hooks make of a page."""

import importlib.util
from pathlib import Path

SPEC = importlib.util.spec_from_file_location("site_hooks", Path(__file__).parents[2] / "scripts" / "site_hooks.py")
assert SPEC is not None
assert SPEC.loader is not None
hooks = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(hooks)


def test_links_to_code_keep_their_words() -> None:
    assert hooks.on_page_markdown("see [a](../tests/a.py), [b](b.md)") == "see a, [b](b.md)"


def test_short_code_is_whole_and_cells_with_many_words_are_marked() -> None:
    row = "<tr><th>n</th><td>ends exclusive; <a href='x'>others</a> may be missing</td><td><code>--a-b</code></td></tr>"
    assert hooks.on_page_content(row) == (
        "<tr><th>n</th><td class=\"wordy\">ends exclusive; <a href='x'>others</a> may be missing</td>"
        '<td><code class="whole">--a-b</code></td></tr>'
    )
    numbers = ("3", "-52 %", "30 [11, 60]", "<b>100</b> [72, 100]", "10 of 10", "93.3 [89.9, 95.6]")
    for text in numbers:
        assert hooks.on_page_content(f"<td>{text}</td>") == f'<td class="whole">{text}</td>'
    assert hooks.on_page_content("<td>3 tasks</td>") == "<td>3 tasks</td>"
    assert hooks.on_page_content("<pre><code>ls</code></pre>") == "<pre><code>ls</code></pre>"
