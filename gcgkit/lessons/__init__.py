"""Helpers for the notebooks and the demo."""


def ready():
    """Make this machine ready for a notebook, print what runs here, and return the helpers, `gcgkit.lessons.notebook`.

    The set-up cell calls it. Packages that gcgkit needs are installed where they are missing, beside the torch that is
    there. Raises RuntimeError with one sentence where that fails.
    """
    from . import hosted  # nothing else can be imported before its packages are there

    hosted.install_missing()
    hosted.fetch_results()
    from . import notebook

    notebook.ready()
    return notebook
