"""What a package index shows of README, where the files beside it are missing.

A link to a file of the repository leads there if pyproject.toml has its address under
``[project.urls]`` as ``Repository``, and is the plain path of the file otherwise.
"""

import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

# [path](path), which is how README names a file.
LINK = re.compile(r"\[([^]\n]*)\]\((?!https?://|#)([^)\n]*)\)")


class CustomMetadataHook(MetadataHookInterface):
    """The project's description."""

    def update(self, metadata: dict) -> None:
        """Set the description to README."""
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        home = metadata.get("urls", {}).get("Repository")
        target = rf"[\1]({home}/blob/main/\2)" if home else r"`\2`"
        metadata["readme"] = {"content-type": "text/markdown", "text": LINK.sub(target, text)}
