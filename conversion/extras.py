"""The optional extras of gpt1-jax: what is missing, and the command that installs it.

The command is right for an installation from a package index and for ``pip install -e .``: pip
finds gpt1-jax installed, in either form, and adds what the extra lists.
"""

import importlib.util
from collections.abc import Sequence


def absent(*modules: str) -> list[str]:
    """Return the modules that are not installed."""
    return [name for name in modules if importlib.util.find_spec(name) is None]


def explain(what: str, packages: Sequence[str], extra: str) -> str:
    """Return the message that ``what`` needs packages, and how to install them."""
    are = "are" if len(packages) > 1 else "is"
    return (
        f"{what} needs {' and '.join(packages)}, which {are} not installed: "
        f'pip install "gpt1-jax[{extra}]"'
    )


def require(what: str, *modules: str, extra: str) -> None:
    """Check that modules of an extra are installed.

    Args:
        what: the subject of the message, such as "fine-tuning".
        modules: the names that are imported.
        extra: the extra of gpt1-jax that lists them.

    Raises:
        ImportError: some modules are missing; the message names them and the command to install.
    """
    missing = absent(*modules)
    if missing:
        raise ImportError(explain(what, missing, extra))
