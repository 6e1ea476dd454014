"""The demo checkpoint: a small GPT-1 in this very folder, for trying things out without the hub."""

import os
from pathlib import Path
from typing import Any

DEMO = "demo"
FOLDER = Path(__file__).parent


def resolve(path: str | os.PathLike[str], **options: Any) -> Path:
    """Return the folder of a checkpoint: the demo's, or ``conversion.resolve``'s.

    A folder of that name where the program runs comes first.
    """
    if str(path) == DEMO and not Path(path).is_dir():
        return FOLDER
    from gpt1_jax._conversion import conversion

    return conversion.resolve(path, **options)
