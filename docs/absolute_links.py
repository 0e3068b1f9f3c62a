"""The README as the package shows it, with absolute links; used by setup.py."""

from __future__ import annotations

import re


def long_description(readme: str, repository: str) -> str:
    """Return the README with absolute links; without an address, links to files become plain text and pictures of files are left out."""

    def absolute(match: re.Match[str]) -> str:
        picture, text, target = match.groups()
        if "://" in target or target.startswith("#"):
            return match[0]
        if not repository:
            return "" if picture else text
        return f"{picture}[{text}]({repository}/{'raw' if picture else 'blob'}/main/{target})"

    return re.sub(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", absolute, readme)


def project_urls(repository: str) -> dict[str, str]:
    """Return the project's addresses by what is there; none without a repository."""
    if not repository:
        return {}
    return {
        "Homepage": repository,
        "Documentation": f"{repository}/tree/main/docs",
        "Source": repository,
        "Issues": f"{repository}/issues",
        "Changelog": f"{repository}/blob/main/CHANGELOG.md",
    }
