"""Settings by which Sphinx builds the documentation; ``make docs`` runs it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS.parent), str(DOCS)]

import generate  # noqa: E402
from generate import docstrings, links  # noqa: E402

import popjax  # noqa: E402

generate.everything(DOCS)

project = "popjax"
author = "The popjax authors"
copyright = f"2026, {author}"
release = version = popjax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_llm.txt",
]
exclude_patterns = ["_build", "generated/parts", "**.ipynb_checkpoints"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# Notebooks are kept as they ran, so that a build trains nothing; EXECUTE=force runs them all again.
nb_execution_mode = os.environ.get("EXECUTE", "off")
nb_execution_raise_on_error = True
nb_execution_timeout = 600

autodoc_default_options = {"members": True, "member-order": "bysource", "exclude-members": "replace"}
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
# Annotations are names as the module has them: that two modules have a Memory is no fault.
suppress_warnings = ["ref.python"]
python_display_short_literal_types = True
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_rtype = False
toc_object_entries_show_parents = "hide"

viewcode_follow_imported_members = False  # the page of the module that defines a name has its source

highlight_language = "none"
smartquotes = False  # [..., A] is a shape

html_theme = "pydata_sphinx_theme"
html_title = "popjax"
html_static_path = ["_static"]
html_css_files = ["popjax.css"]
html_show_sourcelink = False
html_sidebars = {  # pages without pages below them need no navigation of a section
    page: []
    for page in ("getting-started", "tasks", "sweeps", "reports", "reproduction", "benchmarks", "design")
}
html_theme_options = {
    "show_nav_level": 1,
    "show_toc_level": 2,
    "logo": {"text": "popjax"},
    "header_links_before_dropdown": 8,
    "navigation_with_keys": False,
    "navbar_persistent": ["search-button"],
    "footer_start": ["copyright"],
    "footer_end": [],
}

llms_txt_description = (
    "Population-based reinforcement learning in JAX: whole populations train in one compiled program."
)
llms_txt_suffix_mode = "replace"
llms_txt_nested_enabled = False
llms_txt_suppress_unknown_node_warnings = ["abbreviation"]  # the star before keyword-only arguments


def setup(app: object) -> None:
    """Rewrite docstrings, which are written to be read in an editor, for docutils; check links at the end."""
    docstrings.connect(app)
    links.connect(app)
