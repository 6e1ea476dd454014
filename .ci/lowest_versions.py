"""Print the lowest versions that pyproject.toml allows, as constraints for pip.

    python .ci/lowest_versions.py [EXTRA...] > lowest.txt

They are those of the dependencies and of the named extras.
"""

import re
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
# A name with its own extras, and a lower bound without an upper one or a marker.
REQUIREMENT = re.compile(r"([\w.-]+)(?:\[[\w,-]+\])?>=([\w.]+)")


def lowest_versions(project: dict[str, Any], extras: Sequence[str]) -> dict[str, str]:
    """Return the lower bounds of the dependencies and of extras, by distribution.

    Raises:
        ValueError: a requirement has no plain lower bound.
    """
    found = {}
    optional = project["optional-dependencies"]
    for requirement in [
        *project["dependencies"],
        *(each for one in extras for each in optional[one]),
    ]:
        match = REQUIREMENT.fullmatch(requirement)
        if match is None:
            raise ValueError(
                f"{requirement!r} must be a name and a lower bound, as in 'numpy>=2.0'"
            )
        found[match[1]] = match[2]
    return found


if __name__ == "__main__":
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    for name, version in lowest_versions(project, sys.argv[1:]).items():
        print(f"{name}=={version}")
