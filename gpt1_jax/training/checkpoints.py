"""Where a run stands, on disk: by orbax, whole or not at all, so that a killed run goes on."""

import errno
import logging
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax

from gpt1_jax._conversion import files
from gpt1_jax.training.step import TrainState

KEPT = 2  # the latest, and the one before in case the disk loses the latest
OBSOLETE = "obsolete"
Rest = dict[str, Any]  # an object of JSON


class Checkpoints:
    """The checkpoints of one run: the state of training, and what else has to go on.

    A context manager. orbax writes a checkpoint under a temporary name and renames it, and removes
    what a killed run has left unfinished.

    Args:
        folder: of nothing but checkpoints; made if need be.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, folder: Path):
        import orbax.checkpoint as ocp

        # It reports every file, and the errors that are raised here as well.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        self._orbax = ocp
        self._folder = folder
        # Synchronous: a step's state is donated to the next one.
        options = ocp.CheckpointManagerOptions(
            max_to_keep=KEPT,
            enable_async_checkpointing=False,
            cleanup_tmp_directories=True,
            todelete_subdir=OBSOLETE,
        )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._remove_obsolete()
            self._manager = ocp.CheckpointManager(folder.absolute(), options=options)
        except OSError as error:
            raise files.os_error(f"cannot write to {folder}: {_reason(error)}", error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._manager.close()

    def save(self, state: TrainState, rest: Rest) -> Path:
        """Write a checkpoint, unless there is one of this step.

        Args:
            state: of training.
            rest: what else has to go on, as JSON holds it.

        Returns:
            The folder of the checkpoint.

        Raises:
            OSError: it cannot be written; the checkpoints before are as they were.
        """
        step = int(state.step)
        path = self._folder / str(step)
        if step == self._manager.latest_step():
            return path
        args, arrays = self._orbax.args, _arrays(state)
        message = f"cannot write the checkpoint of step {step} to {self._folder}"
        # Asked before: orbax's writers, many at once, would each report on the full disk.
        takes = sum(array.nbytes for array in arrays.values())
        free = shutil.disk_usage(self._folder).free
        if free < takes:
            reason = f"it takes {takes:,} bytes, but only {free:,} are free"
            raise OSError(errno.ENOSPC, f"{message}: {reason}")
        items = args.Composite(
            arrays=args.StandardSave(arrays),
            types=args.JsonSave(_types(arrays)),
            rest=args.JsonSave(rest),
        )
        try:
            self._manager.save(step, args=items)
        except Exception as error:  # orbax and tensorstore raise what they like
            raise files.os_error(f"{message}: {_reason(error)}", error) from error
        self._remove_obsolete()
        return path

    def _remove_obsolete(self) -> None:
        # orbax has moved them here: a kill in the midst of removing leaves no half of a checkpoint
        # where whole ones are.
        shutil.rmtree(self._folder / OBSOLETE, ignore_errors=True)

    @property
    def any(self) -> bool:
        """Whether there are checkpoints."""
        return self._manager.latest_step() is not None

    @property
    def number(self) -> int:
        """How many checkpoints there are."""
        return len(self._manager.all_steps())

    def latest(self, like: TrainState) -> tuple[TrainState, Rest] | None:
        """Read the latest checkpoint; None if there is none.

        Args:
            like: a state with the structure, shapes and dtypes that are expected, or these alone,
                with the shardings to read it into.

        Returns:
            The state and the rest that ``save`` was given.

        Raises:
            ValueError: the checkpoint holds another state, of another model for example, or it
                cannot be read.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        path, args, wanted = self._folder / str(step), self._orbax.args, _arrays(like)
        # Types are compared before arrays are read: orbax would convert another dtype.
        found = self._restore(path, types=args.JsonRestore(), rest=args.JsonRestore())
        here, there = _types(wanted), found.types
        for name in here | there:
            ours, theirs = here.get(name, "missing"), there.get(name, "missing")
            if ours != theirs:
                raise ValueError(
                    f"the checkpoint {path} is of another training: {name} is {theirs} there, but "
                    f"{ours} here"
                )
        like_arrays = jax.tree.map(self._orbax.utils.to_shape_dtype_struct, wanted)
        arrays = self._restore(path, arrays=args.StandardRestore(like_arrays)).arrays
        leaves = [arrays[name] for name in wanted]
        return jax.tree.unflatten(jax.tree.structure(like), leaves), found.rest

    def _restore(self, path: Path, **items: object) -> Any:
        try:
            return self._manager.restore(int(path.name), args=self._orbax.args.Composite(**items))
        except Exception as error:  # as above
            raise ValueError(
                f"the checkpoint {path} cannot be read ({_reason(error)}); remove it, and training "
                "goes on from the one before"
            ) from error


def _arrays(state: TrainState) -> dict[str, jax.Array]:
    """The leaves of a state by names such as "params.transformer.h.0.ln_1.bias", in order."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree.leaves_with_path(state)
    }


def _types(arrays: dict[str, jax.Array]) -> dict[str, str]:
    """Shapes and dtypes, such as "float32[768, 2304]"."""
    return {name: f"{array.dtype}{list(array.shape)}" for name, array in arrays.items()}


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.splitlines()[0]
