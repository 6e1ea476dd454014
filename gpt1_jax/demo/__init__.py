"""The demo checkpoint: a small GPT-1 in this very folder, for trying things out without the hub."""

import os
from pathlib import Path
from typing import TypedDict, Unpack

DEMO = "demo"
FOLDER = Path(__file__).parent


class PushOptions(TypedDict, total=False):
    """How to push to the Hugging Face hub; ``conversion.push_folder`` says what each does."""

    private: bool | None
    token: str | bool | None
    commit_message: str | None
    revision: str | None
    create_pr: bool


class HubOptions(TypedDict, total=False):
    """Where a checkpoint lies, and how to get it from the hub; see ``conversion.resolve``."""

    subfolder: str
    revision: str | None
    cache_dir: str | os.PathLike[str] | None
    local_files_only: bool
    token: str | bool | None
    force_download: bool


def resolve(
    path: str | os.PathLike[str],
    *,
    weights: bool = True,
    variant: str | None = None,
    **hub: Unpack[HubOptions],
) -> Path:
    """Return the folder of a checkpoint: the demo's, or ``conversion.resolve``'s.

    A folder of that name where the program runs comes first.
    """
    if str(path) == DEMO and not Path(path).is_dir():
        if not hub.get("subfolder"):
            return FOLDER
        path = FOLDER
    from gpt1_jax._conversion import conversion

    return conversion.resolve(path, weights=weights, variant=variant, **hub)
