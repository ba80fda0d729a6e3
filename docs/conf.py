"""How the Markdown of this folder becomes a static site (`make docs`).

The pages are written to be read in the repository, and the site is made of the same files: its
source folder is the whole repository, so that links such as ../LOG.md mean the same in both.

1. The navigation is the links of index.md, a group for each of its headings, and below the pages on
   attacks and judges those of their tables.
2. A link to a source file leads to a page that shows the file; one to a folder of the package, to
   its front door, `__init__.py`; one to another folder, to all of its files.
3. Nothing is fetched when the site is read: no fonts, scripts or pictures of other hosts.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import TextLexer, find_lexer_class_for_filename
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

ROOT = Path(__file__).parent.parent

# --- Sphinx ---------------------------------------------------------------------------------------

project = "mosa"
version = release = importlib.metadata.version("mosa-dllm")
extensions = ["myst_parser", "sphinx.ext.autodoc"]
root_doc = "docs/index"
include_patterns = [
    "docs/**.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LOG.md",
    "src/mosa/testbed/checkpoints/README.md",
    "src/mosa/testbed/checkpoints/block/README.md",
    "tests/families/recordings/README.md",
]
# Not walked through: what is ignored by git, and takes long.
exclude_patterns = [".*", "build", "demo", "dist", "runs"]
templates_path = ["_templates"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
maximum_signature_line_length = 80
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"mosa {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_additional_pages = {"index": "start.html"}
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_use_index = False
html_domain_indices = False
# A page on a disk may not read other pages, which summaries would have to.
html_show_search_summary = False

# --- navigation -----------------------------------------------------------------------------------

LINK = re.compile(r"\]\(([^)#\s]+\.md)\)")


def with_navigation(app: Sphinx, docname: str, source: list[str]) -> None:
    """Behind a page that leads to others, the same links as an invisible table of contents."""
    del app
    if docname == root_doc:
        groups = re.split(r"^## ", source[0], flags=re.MULTILINE)[1:]
        named = [(text.splitlines()[0], LINK.findall(text)) for text in groups]
    elif docname in ("docs/attacks/README", "docs/judges/README"):
        rows = [line for line in source[0].splitlines() if line.startswith("| [")]
        named = [("", LINK.findall("\n".join(rows)))]
    else:
        return
    for caption, pages in named:
        options = [":hidden:", *([f":caption: {caption}"] if caption else [])]
        source[0] += "\n".join(["", "```{toctree}", *options, "", *pages, "```", ""])


# --- source files ---------------------------------------------------------------------------------


def shown_path(docname: str, link: str) -> str | None:
    """What a link of a page leads to, below the root; None where there is nothing."""
    path = Path(os.path.normpath((ROOT / docname).parent / link))
    if (path / "__init__.py").is_file():
        path /= "__init__.py"
    return path.relative_to(ROOT).as_posix() if path.exists() else None


class SourceLinks(SphinxTransform):
    """Turns links to files that are no pages into links to pages that show them."""

    default_priority = 500

    def apply(self, **kwargs: Any) -> None:
        """Replace the links of one page; what leads nowhere is left for Sphinx to tell."""
        docname = self.env.docname
        files = list(self.document.findall(addnodes.download_reference))
        folders = [n for n in self.document.findall(addnodes.pending_xref) if not n["refdomain"]]
        for node in [*files, *folders]:
            shown = shown_path(docname, node["reftarget"])
            if shown is not None:
                refuri = "../" * docname.count("/") + f"source/{shown}.html"
                link = nodes.reference("", "", *node.children, internal=True, refuri=refuri)
                link["shows"] = shown
                node.replace_self(link)


def source_pages(app: Sphinx) -> Iterator[tuple[str, dict[str, str], str]]:
    """A page for each file or folder that some page links to."""
    pages = map(app.env.get_doctree, app.env.found_docs)
    links = (link for page in pages for link in page.findall(nodes.reference))
    for shown in sorted({link["shows"] for link in links if "shows" in link}):
        path = ROOT / shown
        body = ""
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            code = file.read_text(encoding="utf-8")
            body += f"<h1>{file.relative_to(ROOT)}</h1>\n"
            lexer = find_lexer_class_for_filename(file.name) or TextLexer
            body += highlight(code, lexer(), HtmlFormatter())
        yield f"source/{shown}", {"title": shown, "body": body}, "page.html"


# --- docstrings -----------------------------------------------------------------------------------


def code_in_backticks(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Our docstrings write code between single backticks, where reStructuredText wants two."""
    del app, what, name, obj, options
    lines[:] = [re.sub(r"(?<!`)`([^`]+)`(?!`)(?=(\w?))", _literal, line) for line in lines]


def _literal(match: re.Match[str]) -> str:
    return f"``{match[1]}``" + ("\\ " if match[2] else "")


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", with_navigation)
    app.connect("html-collect-pages", source_pages)
    app.connect("autodoc-process-docstring", code_in_backticks)
    app.add_transform(SourceLinks)
