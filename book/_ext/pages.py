"""What a page needs beside its text: a card for links to it, downloads, a sitemap, and a light head.

The theme loads Font Awesome twice, as fonts and as a script of 1.5 MB, and other scripts before the
text; here the fonts stay and scripts follow the text. What names a third party without being used goes.
"""

import re
from html import escape
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx

CHAPTER = "book/chapters/"
TABLES = {"runs": "Every run behind this page", "effects": "Every claim's effect, at every scale"}


def describe(app: Sphinx, pagename: str, templatename: str, context: dict, doctree: nodes.document) -> None:
    """Adds an OpenGraph card to the page."""
    if doctree is None:
        return
    name = pagename.removeprefix(CHAPTER)
    cards = [f"_static/cards/{chapter}.png" for chapter in (name, "01_warm_start")]
    picture = next((card for card in cards if (Path(app.srcdir) / "book" / card).exists()), None)
    paragraph = next(iter(doctree.findall(nodes.paragraph)), None)
    words = " ".join(paragraph.astext().split()) if paragraph else app.config.html_title
    description = words if len(words) <= 200 else words[:200].rsplit(" ", 1)[0] + "\N{HORIZONTAL ELLIPSIS}"
    site = app.config.html_baseurl
    card = {
        "og:type": "article",
        "og:site_name": app.config.html_title,
        "og:title": re.sub("<[^>]+>", "", context["title"]),
        "og:description": description,
        **({"og:image": (site or context["content_root"]) + picture} if picture else {}),
        **({"og:url": f"{site}{pagename}.html"} if site else {}),
    }
    tags = [f'<meta property="{key}" content="{escape(value)}" />' for key, value in card.items()]
    tags += [f'<meta name="description" content="{escape(description)}" />']
    tags += ['<meta name="twitter:card" content="summary_large_image" />']
    context["metatags"] = context.get("metatags", "") + "\n".join(tags)


def offer(app: Sphinx, pagename: str, templatename: str, context: dict, doctree: nodes.document) -> None:
    """Adds a chapter's tables and PDF to the menu of downloads."""
    name, group = pagename.removeprefix(CHAPTER), _downloads(context)
    if group is None or name == pagename:
        return
    for table in sorted((Path(app.srcdir) / "book" / "_static" / "records").glob(f"{name}.*.csv")):
        kind = table.name.split(".")[1]
        group.append(_link("csv", context["pathto"](f"_static/records/{table.name}", 1), TABLES[kind], kind))
    if app.config.book_pdf:
        group[:] = [button for button in group if button["label"] != "download-pdf-button"]
        group.append(_link("pdf", f"{name}.pdf", "This chapter as PDF"))


def _downloads(context: dict) -> list | None:
    return next(
        (b["buttons"] for b in context.get("header_buttons", ()) if b["label"] == "download-buttons"), None
    )


def _link(kind: str, url: str, tooltip: str, text: str = "") -> dict:
    icon = f"fas fa-file-{kind}"
    label = f"download-{text or kind}-button"
    text = f"{text}.{kind}"
    return {"type": "link", "url": url, "text": text, "tooltip": tooltip, "icon": icon, "label": label}


def finish(app: Sphinx, exception: Exception | None) -> None:
    """Tidies the pages and writes the sitemap, where the address of the site is known."""
    if exception or app.builder.format != "html":
        return
    out = Path(app.outdir)
    for path in out.rglob("*.html"):
        path.write_text(tidy(path.read_text()))
    if site := app.config.html_baseurl:
        names = ["index.html", *(f"{name}.html" for name in sorted(app.env.found_docs))]
        urls = "".join(f"<url><loc>{escape(site + name)}</loc></url>\n" for name in dict.fromkeys(names))
        head = '<?xml version="1.0" encoding="utf-8"?>\n'
        schema = "http://www.sitemaps.org/schemas/sitemap/0.9"
        (out / "sitemap.xml").write_text(f'{head}<urlset xmlns="{schema}">\n{urls}</urlset>\n')


SCRIPT = re.compile(r"[ \t]*<script\b(?! data-cfasync)[^>]*>.*?</script>\n?", re.DOTALL)
UNUSED = re.compile("fontawesome|thebe|kernelName", re.IGNORECASE)
IN_HEAD = re.compile(r"<link rel=\"preload\"[^>]*>\n?|<link [^>]*sphinx-thebe\.css[^>]*>\n?")
ROLES = re.compile(r' role="(?:list|doc-biblioentry)"')  # a bibliography with its anchors is no list
WIDE = 'class="pst-scrollable-table-container"'  # a table that scrolls must be reached by the keyboard
END = "  <!-- Scripts loaded after <body>"


def tidy(page: str) -> str:
    """The page with its scripts after the text, in their order, and without what it does not use."""
    head, found, body = page.partition("</head>")
    if not found:
        return page
    scripts = [script for script in dict.fromkeys(SCRIPT.findall(head)) if not UNUSED.search(script)]
    head = IN_HEAD.sub("", SCRIPT.sub("", head))
    body = ROLES.sub("", body).replace(WIDE, f'{WIDE} tabindex="0"')
    body = SCRIPT.sub(lambda script: "" if UNUSED.search(script[0]) else script[0], body)
    return head + found + body.replace(END, "".join(scripts) + END, 1)


def setup(app: Sphinx) -> dict:
    app.add_config_value("book_pdf", False, "html")
    app.connect("html-page-context", describe)
    app.connect("html-page-context", offer, priority=900)  # after the theme has made its buttons
    app.connect("build-finished", finish)
    return {"version": "1", "parallel_read_safe": True}
