"""The flag ``--adapter`` of commands that read a model."""

import functools
import inspect
from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import ParamSpec

P = ParamSpec("P")


def takes_adapter(
    default: str | None = None,
) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Return what has a command run on its ``model`` with its ``adapter`` merged.

    The command itself gets the merged checkpoint, in a folder that is removed afterwards, as its
    model, and no adapter.

    Args:
        default: the model where none is given; None where one must be.
    """

    def decorate(command: Callable[P, None]) -> Callable[P, None]:
        signature = inspect.signature(command)

        @functools.wraps(command)
        def run(*args: P.args, **kwargs: P.kwargs) -> None:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            given = bound.arguments
            model, adapter = given["model"], given["adapter"]
            if adapter is None:
                given["model"] = default if model is None else model
                if given["model"] is None:
                    raise ValueError("give a checkpoint with --model, or an adapter with --adapter")
                command(*bound.args, **bound.kwargs)
                return
            from gpt1_jax.training.lora.checkpoint import merge_checkpoint

            with TemporaryDirectory(prefix="gpt1-adapter-") as folder:
                merge_checkpoint(
                    adapter,
                    folder,
                    model=model,
                    revision=given["revision"],
                    local_files_only=given["local_files_only"],
                )
                given |= {"model": folder, "adapter": None, "revision": None}
                try:
                    command(*bound.args, **bound.kwargs)
                except ValueError as error:
                    if folder not in str(error):
                        raise
                    raise ValueError(str(error).replace(folder, str(adapter))) from None

        return run

    return decorate
