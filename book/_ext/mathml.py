"""Formulas as MathML, made when the page is: browsers draw it without a script, screen readers read it.

Instead of MathJax, of which Sphinx would load a megabyte from elsewhere for the first formula.
"""

from html import escape

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.util.math import get_node_equation_number
from sphinx.writers.html5 import HTML5Translator


def inline(self: HTML5Translator, node: nodes.math) -> None:
    self.body.append(convert(node.astext()))
    raise nodes.SkipNode


def block(self: HTML5Translator, node: nodes.math_block) -> None:
    name = f' id="{escape(node["ids"][0])}"' if node["ids"] else ""
    number = get_node_equation_number(self, node) if node.get("number") else None
    shown = f'<span class="eqno">({number})</span>' if number else ""
    self.body.append(f'<div class="math"{name}>{shown}{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def setup(app) -> dict:
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"version": "1", "parallel_read_safe": True}
