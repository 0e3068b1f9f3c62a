"""Hooks of the site (mkdocs.yml): pages made from files at the top of the repository, and links that lead out of docs/.

README.md is the site's home, CONTRIBUTING.md and CHANGELOG.md are pages of it. A link to another file of the repository becomes its
name in code style, since the site has no such file.
"""

from __future__ import annotations

import posixpath
import re
import runpy
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
MESSAGES = "reference/messages.md"
PAGES = {
    "README.md": "index.md",
    "README.zh-CN.md": "zh/index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "examples/README.md": "examples.md",
}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
_ROLE = re.compile(r":\w+:<code>~?([\w.]+)</code>")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made from files at the top of the repository."""
    for source, page in PAGES.items():
        if (ROOT / source).exists():
            files.append(
                File.generated(
                    config, page, content=rewrite_links((ROOT / source).read_text(encoding="utf-8"), posixpath.dirname(source), page)
                )
            )
    files.append(File.generated(config, MESSAGES, content=str(runpy.run_path(str(ROOT / "docs" / "error_messages.py"))["page"]())))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite the links of a page that lies in docs/; those of generated pages are right already."""
    source = page.file.src_uri
    return (
        markdown
        if source in (MESSAGES, *PAGES.values())
        else rewrite_links(markdown, posixpath.join("docs", posixpath.dirname(source)), source)
    )


def on_page_content(html: str, **_: Any) -> str:
    """Show a docstring's reStructuredText roles as code."""
    return _ROLE.sub(lambda match: f"<code>{match[1].rsplit('.', 1)[-1]}</code>", html)


def rewrite_links(markdown: str, folder: str, page: str) -> str:
    """Return a page's text with its links to files made right for the site.

    Args:
        markdown: The text.
        folder: Folder of the source file in the repository; links count from there.
        page: Path of the page on the site.
    """

    def rewritten(match: re.Match[str]) -> str:
        picture, text, target, anchor = match[1], match[2], match[3], match[4] or ""
        if "://" in target or target.startswith("mailto:"):
            return match[0]
        path = posixpath.normpath(posixpath.join(folder, target))
        place = path.removeprefix("docs/") if path.startswith("docs/") else PAGES.get(path)
        if place is None:
            return text if text.startswith("`") else f"{text} (`{path}`)" if text != path else f"`{path}`"
        return f"{picture}[{text}]({posixpath.relpath(place, posixpath.dirname(page) or '.')}{anchor})"

    return _LINK.sub(rewritten, markdown)
