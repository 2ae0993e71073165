"""Templates of HTML pages: every value is escaped, and a name that is missing is an error.
Knows Jinja; nothing of any page."""

from pathlib import Path

import jinja2


def load(file: Path) -> jinja2.Template:
    """The template in a file; templates that it includes are found next to it."""
    environment = jinja2.Environment(
        autoescape=True,
        loader=jinja2.FileSystemLoader(file.parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(file.name)
