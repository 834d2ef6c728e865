"""Pages and files of the repository outside `docs` that the site has as well.

README.md, CHANGELOG.md and CONTRIBUTING.md are pages of the site, and other files that a page links
to, such as results and recipes, are copied beside them. Links are rewritten, so the same Markdown
is right in the repository and on the site.
"""

import re
from os.path import normpath, relpath
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
"""Pages from the root of the repository, and their places on the site."""

LINK = re.compile(r'(?<=\]\()[^)\s]+(?=\))|(?<=src=")[^"]+(?=")|(?<=srcset=")[^"]+(?=")')
"""The target of a link or picture in Markdown or HTML."""

ROOT = Path(__file__).parents[1]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the root, and the files that pages link to."""
    for source, place in PAGES.items():
        content = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, place, content=content))
    for page in list(files.documentation_pages()):
        for target in LINK.findall(page.content_string):
            path = _repository_path(target, page.src_uri)
            place = _place(path)
            if place.startswith("files/") and files.get_file_from_path(place) is None:
                files.append(File.generated(config, place, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite links of a page from paths of the repository to paths of the site."""
    place = page.file.src_uri

    def rewrite(match: re.Match[str]) -> str:
        target, hash_sign, anchor = match[0].partition("#")
        path = _repository_path(target, place)
        if not (ROOT / path).is_file():
            return match[0]
        return relpath(_place(path), Path(place).parent) + hash_sign + anchor

    return LINK.sub(rewrite, markdown)


def _repository_path(target: str, place: str) -> str:
    """Return the path in the repository that a link on a page of the site names."""
    sources = {page: source for source, page in PAGES.items()}
    folder = Path(sources.get(place, f"docs/{place}")).parent
    return normpath(folder / target.partition("#")[0])


def _place(path: str) -> str:
    """Return the place on the site of a file of the repository; "" if there is no such file."""
    if path in PAGES:
        return PAGES[path]
    if not (ROOT / path).is_file():
        return ""
    return path.removeprefix("docs/") if path.startswith("docs/") else f"files/{path}"
