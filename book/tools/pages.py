"""A small Sphinx extension, named in _config.yml: what the pages of the site need and
no setting gives.
"""

from pathlib import Path

import live_models
import offline


def setup(app):
    app.connect("config-inited", use_the_copies)
    # after those who add scripts
    app.connect("html-page-context", load_each_script_once, priority=900)
    app.connect("html-page-context", leave_citations_without_a_role)
    app.connect("html-page-context", name_the_folds, priority=900)  # after the theme
    app.connect("build-finished", add_the_models)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


def use_the_copies(app, config) -> None:
    """MathJax and the widget manager from _static/vendor when they are there, else from
    a CDN.
    """
    if offline.present():
        config.mathjax_path = "vendor/mathjax/tex-chtml.js"
        # widgets.js fetches the manager itself, where it has something to draw
        scripts = ("vendor/require.js", "widgets.js")
        config.nb_ipywidgets_js = {script: {} for script in scripts}


def load_each_script_once(app, pagename, templatename, context, doctree) -> None:
    """Extensions that jupyter-book initialises twice add their inline scripts twice; a
    second `const` is an error.
    """
    scripts = context.get("script_files", [])
    once, contents = [], []
    for script in scripts:
        content = (str(script.filename or ""), script.attributes)
        if content not in contents:
            once.append(script)
            contents.append(content)
    scripts[:] = once


def leave_citations_without_a_role(
    app, pagename, templatename, context, doctree
) -> None:
    """docutils calls a bibliography a list, but its entries are no list items: a screen
    reader counts none.
    """
    if "body" in context:
        context["body"] = context["body"].replace(
            'role="list" class="citation-list"', 'class="citation-list"'
        )


def name_the_folds(app, pagename, templatename, context, doctree) -> None:
    """In the sidebar a chapter's further pages are folded away behind an arrow, which
    the theme leaves without a name: a screen reader would say "button".
    """
    list_pages = context.get("generate_toctree_html")
    if list_pages is None:
        return

    def list_pages_with_names(*args, **kwargs):
        pages = list_pages(*args, **kwargs)
        if pages:
            for arrow in pages.select("details > summary"):
                chapter = arrow.find_parent("li").a.get_text().strip()
                arrow["aria-label"] = f"pages below {chapter}"
        return pages

    context["generate_toctree_html"] = list_pages_with_names


def add_the_models(app, exception) -> None:
    """The bundled models for the pages that run them: live_models.py."""
    if exception is None and app.builder.format == "html":
        live_models.write_models(Path(app.outdir) / "_static" / live_models.FOLDER)
