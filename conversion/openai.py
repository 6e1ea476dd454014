"""OpenAI's layout: one flat float32 vector, cut into .npy pieces, and the shapes in a JSON file.

The shape of a Conv1D weight is (1, in, out) in OpenAI's file and in ours, (in, out) in AllenNLP's.
"""

import io
import itertools
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from conversion.config_file import CONFIG, MODEL_TYPE, config_text, read_config
from conversion.files import atomic_write
from conversion.json_file import first_line, read_json, short
from conversion.layout import ALIASES, BASE, ParamSpec, check_not_quantized, param_specs
from conversion.match import MAX_FAULTS, LazyTensor, aligned_empty, first_faults

SHAPES = "params_shapes.json"
PIECES = 10  # OpenAI's own loader reads exactly so many
_N_HEAD = 12  # it is not in the files


def open_folder(folder: Path) -> tuple[dict[str, Any], list[LazyTensor]]:
    """Return the config that the files show, and every parameter by torch's name, not yet read.

    The numbers come from the shapes; a config.json beside them, if there is one, adds the other
    fields.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the shapes are not those of GPT-1 in order, a piece is not a float32 vector, the
            pieces are longer or shorter than the shapes, or the number of heads is not known.
    """
    shapes = _read_shapes(folder / SHAPES)
    numbers, rows = _described(folder / SHAPES, shapes)
    config = _read_config(folder, numbers)
    pieces = _read_pieces(folder)
    total = sum(math.prod(shape) for shape in shapes)
    held = sum(piece.length for piece in pieces)
    if total != held:
        raise ValueError(
            f"{folder}: the pieces params_*.npy hold {held} numbers, {SHAPES} describes {total}"
        )

    found, start = [], 0
    for row in rows:
        stop = start + math.prod(row.shape)
        load = _reader(pieces, start, stop, row.torch_shape)
        found.append(LazyTensor(row.torch, row.torch_shape, "float32", load, SHAPES))
        start = stop
    return config, found


def write_folder(
    folder: Path,
    config: Mapping[str, Any],
    architecture: str,
    leaves: Sequence[tuple[ParamSpec, LazyTensor]],
    copies: Sequence[Path] = (),
) -> None:
    """Write ten pieces, the shapes, and a config.json, which holds what the files do not.

    Args:
        folder: made if need be. What it holds of other weights is removed.
        config: the fields of the config.json.
        architecture: one of ``ARCHITECTURES``.
        leaves: the table's rows with their leaves; narrower floats are widened, exactly.
        copies: files to copy into the folder.

    Raises:
        ValueError: there are parameters of heads, which the format cannot hold.
        OSError: the folder cannot be written. It is left as it was.
    """
    check_not_quantized(config, "OpenAI's format")
    heads = [row.torch for row, _ in leaves if row.openai_shape is None]
    if heads:
        raise ValueError(
            f"OpenAI's format holds the body alone, with a tied head; it cannot hold "
            f"{', '.join(heads)}"
        )
    shapes = [list(row.openai_shape) for row, _ in leaves if row.openai_shape is not None]
    text = config_text(config, architecture, ["float32"])
    flat = np.empty(sum(map(math.prod, shapes)), np.float32)
    start = 0
    for row, one in leaves:
        stop = start + math.prod(row.shape)
        flat[start:stop] = row.to_torch(one.load()).reshape(-1)
        start = stop
    with atomic_write(folder, weights=True) as new:
        for i, piece in enumerate(np.array_split(flat, PIECES)):
            content = io.BytesIO()  # numpy's error of a full disk names no reason
            np.save(content, piece, allow_pickle=False)
            new(f"params_{i}.npy").write_bytes(content.getbuffer())
        new(SHAPES).write_text(json.dumps(shapes), encoding="utf-8")
        for path in copies:
            shutil.copyfile(path, new(path.name))
        # Last, so that a folder never has a new config beside old weights.
        new(CONFIG).write_text(text, encoding="utf-8")


def _read_shapes(path: Path) -> list[tuple[int, ...]]:
    shapes = read_json(path)
    if not isinstance(shapes, list):
        raise ValueError(f"{path} must hold a list of shapes, not {type(shapes).__name__}")
    for i, shape in enumerate(shapes):
        if not isinstance(shape, list) or not all(type(n) is int and n > 0 for n in shape):
            raise ValueError(
                f"{path}: entry {i} is {short(shape)}; it must be a list of positive integers"
            )
    return [tuple(shape) for shape in shapes]


def _described(
    path: Path, shapes: list[tuple[int, ...]]
) -> tuple[dict[str, int], tuple[ParamSpec, ...]]:
    """Return the numbers that the shapes show, and the table's rows, whose shapes these are."""
    heads, per_layer = 2, 12
    n_layer, rest = divmod(len(shapes) - heads, per_layer)
    if n_layer < 1 or rest:
        raise ValueError(
            f"{path} has {len(shapes)} entries; GPT-1's are 2 (positions, tokens) and 12 a layer"
        )
    positions, tokens = shapes[:2]
    if len(positions) != 2 or len(tokens) != 2:
        raise ValueError(
            f"{path}: entries 0 and 1 are {positions} and {tokens}; they must be "
            f"(positions, width) and (tokens, width)"
        )
    numbers = {
        "n_layer": n_layer,
        "n_embd": positions[1],
        "n_positions": positions[0],
        "vocab_size": tokens[0],
    }
    rows = param_specs(numbers | {"n_head": 1}, BASE)  # no shape depends on the number of heads
    # Other loaders squeeze a Conv1D weight, and AllenNLP's checkpoint has it without the leading 1.
    wrong = [
        f"{path}: entry {i} is {shape}; GPT-1's {row.torch} is {row.openai_shape}"
        for i, (row, shape) in enumerate(zip(rows, shapes, strict=True))
        if shape not in (row.openai_shape, row.shape)
    ]
    if wrong:
        raise ValueError("\n".join(first_faults(wrong)))
    return numbers, rows


def _read_config(folder: Path, numbers: Mapping[str, int]) -> dict[str, Any]:
    """Return the fields of a config.json, if there is one, with the numbers that it lacks."""
    if (folder / CONFIG).exists():
        config = read_config(folder, absent=numbers)
    elif numbers["n_embd"] % _N_HEAD == 0:
        config = {"model_type": MODEL_TYPE, **numbers}
    else:
        raise ValueError(
            f"{folder}: n_head is not in OpenAI's files, and GPT-1's {_N_HEAD} does not divide the "
            f"width {numbers['n_embd']}; put a {CONFIG} with n_head there"
        )
    return config if ALIASES["n_head"] in config else {"n_head": _N_HEAD, **config}


@dataclass(frozen=True)
class _Piece:
    """A file of float32 numbers: the byte at which they begin, and how many there are."""

    path: Path
    offset: int
    length: int

    def map(self) -> np.ndarray:
        # Not numpy's load, whose parser of headers can fail when two threads of Python 3.11 are
        # in it at once (cpython issue 106905).
        return np.memmap(self.path, "<f4", "r", self.offset, (self.length,))


def _read_pieces(folder: Path) -> list[_Piece]:
    """Return every piece, in order. No number is read yet."""
    files = {path.name for path in folder.glob("params_*.npy") if path.is_file()}
    stems = (name.removeprefix("params_").removesuffix(".npy") for name in files)
    last = max((int(stem) for stem in stems if stem.isdecimal()), default=0)
    # No list of all: the number in a file's name can be of any size.
    names = (f"params_{i}.npy" for i in range(last + 1))
    missing = (name for name in names if name not in files)
    first = list(itertools.islice(missing, MAX_FAULTS))
    if first:
        more = " and others" if next(missing, None) else ""
        raise FileNotFoundError(f"{folder} lacks {', '.join(first)}{more}")
    pieces = []
    for path in (folder / f"params_{i}.npy" for i in range(last + 1)):
        piece = _open(path)
        if piece.dtype != np.dtype("<f4") or piece.ndim != 1:
            raise ValueError(
                f"{path} is {piece.dtype} of shape {piece.shape}; it must be a float32 vector"
            )
        pieces.append(_Piece(path, piece.offset, piece.size))
    return pieces


def _open(path: Path) -> np.memmap:
    """Map a .npy file, and check that it is whole."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # numpy's parser of headers raises many classes
        raise ValueError(
            f"{path} is not a whole .npy file of numbers ({first_line(error)})"
        ) from None
    if not isinstance(array, np.memmap):  # numpy opens an archive of arrays under any name
        array.close()
        raise ValueError(f"{path} is an archive; it must be a .npy file, which holds one array")
    right, size = array.offset + array.nbytes, path.stat().st_size
    if size != right:  # numpy leaves the rest unread
        raise ValueError(f"{path} has {size} bytes; by its header it must have {right}")
    return array


def _reader(
    pieces: Sequence[_Piece], start: int, stop: int, shape: tuple[int, ...]
) -> Callable[[], np.ndarray]:
    """What reads the numbers from ``start`` to ``stop`` of all the pieces together."""

    def load() -> np.ndarray:
        array = aligned_empty((stop - start,), np.float32)
        begin = 0  # where the piece begins in the whole
        for piece in pieces:
            low, high = max(start, begin), min(stop, begin + piece.length)
            if low < high:
                # Mapped for this slice only: the pages of a mapped file count as memory.
                array[low - start : high - start] = piece.map()[low - begin : high - begin]
            begin += piece.length
        return array.reshape(shape)

    return load
