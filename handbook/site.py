"""The documentation as a site: `python -m handbook.site` lays out in `build/pages` what README.md leads to, for mkdocs to render.

The site has the folders of the repository, so that one link works in both.
"""

from __future__ import annotations

import shutil

from handbook.links import ROOT, reached

PAGES = ROOT / "build" / "pages"


def main() -> None:
    """Copy the pages, and what they show and link to."""
    shutil.rmtree(PAGES, ignore_errors=True)
    for file in reached():
        place = PAGES / file.relative_to(ROOT)
        place.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".md":
            # Sample answers are folded away; what is folded is Markdown, too.
            place.write_text(file.read_text(encoding="utf-8").replace("<details>", '<details markdown="1">'), encoding="utf-8")
        else:
            shutil.copyfile(file, place)


if __name__ == "__main__":
    main()
