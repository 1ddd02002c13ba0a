"""`grpokit report`: what a run did, to look at. One HTML file without scripts, its twin in JSON, a short Markdown.

In: one or two `grpokit.record.Record`. `content` says everything once, as plain data; the page and the Markdown only
show it. HTML needs matplotlib and jinja2, the others nothing.
"""

from .content import content
from .markdown import to_markdown
from .page import to_html

__all__ = ["content", "to_html", "to_markdown"]
