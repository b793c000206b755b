"""How Sphinx builds the site, from what `docs/site.py` has written beside this file."""

from docs.site import anchor
from gateway.version import __version__

project = "Presence gateway"
release = version = __version__
author = "the presence gateway's authors"
copyright = "the presence gateway's authors, under the MIT licence"  # noqa: A001 - Sphinx's name for it

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["files"]

myst_heading_anchors = 4
myst_heading_slug_func = anchor  # links hold as they do in the repository
suppress_warnings = [
    "misc.highlighting_failure",
    "config.cache",
]  # configurations of nginx and HAProxy, with what is to be filled in

autodoc_member_order = "bysource"
autodoc_typehints = "description"

html_theme = "furo"
html_title = "Presence gateway"
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
