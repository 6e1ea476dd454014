"""The strict check of tensors against the table: everything wrong in one error, before any is read.

Nothing is dropped or renamed by accident. What a checkpoint may hold beside the parameters asked
for is listed here by name: the parameters of other heads, the mask and position buffers of old
versions, and the second copy of a tied embedding.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike

from conversion.layout import (
    ALIASES,
    BASE,
    CLASSIFICATION,
    OWN_HEAD,
    QUANT_METHOD,
    ParamSpec,
    Sizes,
    one_layer,
    param_specs,
    quantization,
    sizes,
    tied,
)

# float64 is refused, not narrowed: JAX would make float32 of it silently.
DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}

# And what quantized weights are.
STORED = {**DTYPES, "int8": np.dtype(np.int8)}

# Faults that an error names; a file can have any number of them.
MAX_FAULTS = 20
_LINE = 400  # characters

_PREFIX = "transformer."
_TOKENS = "tokens_embed.weight"
_POSITIONS = "positions_embed.weight"
_LM_HEAD = "lm_head.weight"


class MissingHeadError(ValueError):
    """The weights hold nothing of the head that the architecture needs, and fit otherwise."""


@dataclass(frozen=True)
class LazyTensor:
    """An array that is described, but not read yet.

    Attributes:
        name: as the source spells it.
        shape: as the source holds it.
        dtype: numpy's name of the dtype.
        load: reads it: a contiguous array that shares no memory with the source.
        file: where it lies, for error messages.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    load: Callable[[], np.ndarray] = field(repr=False)
    file: str = ""

    @property
    def nbytes(self) -> int:
        """Its size, for a dtype that can be read."""
        return int(np.prod(self.shape, dtype=np.int64)) * STORED[self.dtype].itemsize


def aligned_empty(shape: Sequence[int], dtype: DTypeLike) -> np.ndarray:
    """Return an array without values, which JAX on a CPU takes as it is instead of copying it.

    For that it must begin at a multiple of 64 bytes.
    """
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + 63, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


@dataclass(frozen=True)
class _Expected:
    """What may stand under a name: any of the shapes and dtypes (None: any at all)."""

    shapes: tuple[tuple[int, ...], ...] | None
    dtypes: Collection[str] | None = tuple(DTYPES)

    @classmethod
    def of(cls, row: ParamSpec, shape: tuple[int, ...]) -> "_Expected":
        return cls((shape,), tuple(DTYPES) if row.dtype is None else (row.dtype,))


def first_faults(faults: Sequence[str], indent: str = "") -> list[str]:
    """Return the first faults of an unbounded list, and a line with the number of the others."""
    rest = len(faults) - MAX_FAULTS
    first = [one if len(one) <= _LINE else one[:_LINE] + " ..." for one in faults[:MAX_FAULTS]]
    return [*first, *([f"{indent}... and {rest} more"] if rest > 0 else [])]


def match_tensors(  # noqa: PLR0915 (one walk through the table collects all that is wrong)
    source: str,
    found: Iterable[LazyTensor],
    config: Mapping[str, Any],
    architecture: str,
    *,
    new_head: bool = False,
    ignore_mismatched_sizes: bool = False,
    config_name: str = "config.json",
    given: Collection[str] = (),
) -> list[tuple[ParamSpec, LazyTensor]]:
    """Match tensors under torch's names with the table.

    Names of the body may have the prefix ``transformer.`` or not. ``lm_head.weight`` and
    ``tokens_embed.weight`` stand for each other while ``tie_word_embeddings`` is true; where both
    are there, loading the embedding compares them bit by bit.

    Args:
        source: what error messages call the source.
        found: every tensor of the source.
        config: the fields of its config.json.
        architecture: one of ``ARCHITECTURES``.
        new_head: leave out the architecture's own head where the source has nothing of it.
        ignore_mismatched_sizes: take such a head of another shape for none.
        config_name: what error messages call the config.
        given: the fields that are not the config's own, but were given in their place.

    Returns:
        Every row of the table with its tensor, in the table's order.

    Raises:
        ValueError: anything is missing, unexpected, there twice, or of a wrong shape or dtype. All
            of it is named.
        MissingHeadError: the architecture's own head is missing, nothing else is wrong, and
            ``new_head`` is false.
    """
    groups: dict[str, list[LazyTensor]] = {}
    for stored in found:
        groups.setdefault(_canonical(stored.name), []).append(stored)
    if ignore_mismatched_sizes:
        groups = _without_misfit_head(groups, config, architecture)
    first = f"{source} does not fit {architecture}"
    differences = _differences(config, architecture, groups)
    if differences:
        first += ": " + "; ".join(
            f"{_said(number, said, config, config_name, given)}, the weights show {shown}"
            for number, said, shown in differences
        )
        if "num_labels" in given and not ignore_mismatched_sizes:
            first += " (ignore_mismatched_sizes=True takes a head of another size for none)"
    # Before there is a row for each parameter: a number in a file can be of any size.
    if sizes(config).n_layer > len(groups):
        raise ValueError(first)

    rows = param_specs(config, architecture)

    prefixed = any(stored.name.startswith(_PREFIX) for group in groups.values() for stored in group)
    named = {_canonical(row.torch): row for row in rows}
    body = {name for name in named if _in_body(name)}
    head = [name for name in named if name in OWN_HEAD[architecture]]
    shaped = [f"{name} of shape {named[name].torch_shape}" for name in head]
    headless = bool(head) and not any(name in groups for name in head)
    if headless:
        named = {name: row for name, row in named.items() if name not in head}

    optional = _buffers(sizes(config))
    for other, names in OWN_HEAD.items():
        if other != architecture:
            optional |= {name: _Expected(None, dtypes=None) for name in names}
    if tied(config):
        tokens = named[_TOKENS]
        if _LM_HEAD in groups and _TOKENS not in groups:
            named = {_LM_HEAD if name == _TOKENS else name: row for name, row in named.items()}
        else:
            optional[_LM_HEAD] = _Expected.of(tokens, tokens.torch_shape)
    elif architecture in (BASE, CLASSIFICATION):
        optional[_LM_HEAD] = _Expected(None, dtypes=None)

    def spell(name: str) -> str:
        return _PREFIX + name if prefixed and name in body else name

    expected = {name: _Expected.of(row, row.torch_shape) for name, row in named.items()}
    faults = _faults(expected, optional, groups, spell)
    if headless and faults and not new_head:
        faults = [f"  - missing     {name}" for name in head] + faults
    if faults:
        first += _quantization_differs(config, groups, config_name)
        if _LM_HEAD in named and _LM_HEAD not in groups:
            first += f" ({_LM_HEAD} is needed because tie_word_embeddings is false)"
        raise ValueError("\n".join([first, *first_faults(faults, "  ")]))
    if headless and not new_head:
        raise MissingHeadError(
            f"{source} holds no {' and no '.join(shaped)}, which {architecture} needs"
        )

    fitted = {name: groups[name][0] for name in named}
    if tied(config) and _TOKENS in fitted and _LM_HEAD in groups:
        fitted[_TOKENS] = _both(source, fitted[_TOKENS], groups[_LM_HEAD][0])
    return [(named[name], stored) for name, stored in fitted.items()]


def match_tree(
    params: Mapping[str, Any], config: Mapping[str, Any], architecture: str
) -> list[tuple[ParamSpec, LazyTensor]]:
    """Match the leaves of a nested dict with the table; ``load`` gives each leaf in numpy.

    Args:
        params: the nested dict; its leaves are numpy arrays or anything that ``np.asarray`` takes.
        config: the fields of its config.json.
        architecture: one of ``ARCHITECTURES``.

    Returns:
        Every row of the table with its leaf, in the table's order.

    Raises:
        ValueError: anything is missing, unexpected, or of a wrong shape or dtype. All of it is
            named, as a path with dots.
    """
    groups = {".".join(path): [leaf] for path, leaf in _leaves(params, ())}
    first = f"the parameters do not fit {architecture} with this config"
    if (n_layer := sizes(config).n_layer) > len(groups):
        raise ValueError(f"{first}, whose n_layer is {n_layer}: there are {len(groups)} of them")
    named = {".".join(row.path): row for row in param_specs(config, architecture)}
    expected = {name: _Expected.of(row, row.shape) for name, row in named.items()}
    faults = _faults(expected, {}, groups, lambda name: name)
    if faults:
        if "lm_head.kernel" in groups and "lm_head.kernel" not in named:
            first += " (lm_head is a parameter of its own only if tie_word_embeddings is false)"
        raise ValueError("\n".join([first, *first_faults(faults, "  ")]))
    return [(row, groups[name][0]) for name, row in named.items()]


def _faults(
    expected: Mapping[str, _Expected],
    optional: Mapping[str, _Expected],
    groups: Mapping[str, Sequence[LazyTensor]],
    spell: Callable[[str], str],
) -> list[str]:
    """One line for each thing wrong."""
    lines = [
        f"  - missing     {spell(name)} {want.shapes[0] if want.shapes else ''}".rstrip()
        for name, want in expected.items()
        if name not in groups
    ]
    wrong = []
    for name, group in groups.items():
        if len(group) > 1:
            places = " and ".join(f"{one.name} in {one.file}".removesuffix(" in ") for one in group)
            wrong.append(f"  * duplicate   {group[0].name}: {places}")
        want = expected.get(name) or optional.get(name)
        for one in group:
            if want is None:
                lines.append(f"  + unexpected  {one.name} {one.shape}")
                continue
            if want.shapes is not None and one.shape not in want.shapes:
                right = " or ".join(map(str, want.shapes))
                wrong.append(f"  ~ mis-shaped  {one.name} {one.shape}, expected {right}")
            if want.dtypes is not None and one.dtype not in want.dtypes:
                right = " or ".join(want.dtypes)
                wrong.append(f"  ~ dtype       {one.name} is {one.dtype}, expected {right}")
    return lines + wrong


def _canonical(name: str) -> str:
    """Return the name of a body parameter without the prefix; other names as they are."""
    bare = name.removeprefix(_PREFIX)
    return bare if _in_body(bare) or bare == "position_ids" else name


def _in_body(name: str) -> bool:
    """Return whether a parameter without the prefix, or a buffer beside it, is one of the body."""
    return name.startswith(("h.", "tokens_embed.", "positions_embed."))


def _buffers(numbers: Sizes) -> dict[str, _Expected]:
    """What old versions saved beside the parameters: causal masks and position ids."""
    P = numbers.n_positions
    mask = _Expected(((1, 1, P, P),), dtypes=None)
    masks = {f"h.{n}.attn.bias": mask for n in range(numbers.n_layer)}
    return masks | {"position_ids": _Expected(((P,), (1, P)), dtypes=None)}


def _differences(
    config: Mapping[str, Any], architecture: str, groups: Mapping[str, Sequence[LazyTensor]]
) -> list[tuple[str, int, int]]:
    """(number, what the config says, what the weights show) wherever the two differ."""
    shapes = {name: group[0].shape for name, group in groups.items()}
    said, shown = sizes(config)._asdict(), {}
    # The last one decides the width, should they differ.
    tables = {_POSITIONS: "n_positions", _LM_HEAD: "vocab_size", _TOKENS: "vocab_size"}
    for name, number in tables.items():
        if len(shapes.get(name, ())) == 2:
            shown[number], shown["n_embd"] = shapes[name]
    # A layer counts if it has a parameter of a layer, so that a stray name makes no layer.
    in_block = {
        row.torch.removeprefix("h.0.")
        for row in param_specs(one_layer(config), BASE)
        if row.path[0] == "h"
    }
    split = [name.split(".", 2) for name in shapes if name.startswith("h.")]
    shown["n_layer"] = len({n for _, n, *rest in split if rest and rest[0] in in_block})
    if architecture == CLASSIFICATION and len(shapes.get("score.weight", ())) == 2:
        said["num_labels"] = param_specs(one_layer(config), architecture)[-1].torch_shape[0]
        shown["num_labels"] = shapes["score.weight"][0]
    return [(number, said[number], n) for number, n in shown.items() if n != said[number]]


def _quantization_differs(
    config: Mapping[str, Any], groups: Mapping[str, Sequence[LazyTensor]], config_name: str
) -> str:
    """What ``quantization_config`` has to do with faults: nothing, or words to add to a message."""
    said = quantization(config)
    scales = [name for name in groups if name.endswith(".weight_scale")]
    if said is None:
        return (
            f": the weights are int8, but {config_name} has no quantization_config with "
            f'"quant_method": "{QUANT_METHOD}"'
            if scales
            else ""
        )
    if not scales:
        return f": quantization_config of {config_name} says that the weights are int8, not floats"
    if said.head != (_canonical("tokens_embed.weight_scale") in groups):
        return (
            f": the embedding is {'not ' if said.head else ''}int8, against quantization_config's "
            f"head of {config_name}"
        )
    return ""


def _said(
    number: str, said: int, config: Mapping[str, Any], config_name: str, given: Collection[str]
) -> str:
    """What a number of the config is, and who says so."""
    if number in given:
        return f"{number}={said} is given"
    names = (number, {**ALIASES, "num_labels": "id2label"}.get(number, number))
    if all(config.get(name) is None for name in names):
        return f"{config_name} has no {number}, whose default is {said}"
    return f"{config_name} says {number} {said}"


def _without_misfit_head(
    groups: dict[str, list[LazyTensor]], config: Mapping[str, Any], architecture: str
) -> dict[str, list[LazyTensor]]:
    """Leave out the architecture's own head where it has another shape than the config's."""
    rows = param_specs(one_layer(config), architecture)
    own = {row.torch: row.torch_shape for row in rows if row.torch in OWN_HEAD[architecture]}
    if all(one.shape == own[name] for name in own for one in groups.get(name, ())):
        return groups
    return {name: group for name, group in groups.items() if name not in own}


def _both(source: str, tokens: LazyTensor, lm_head: LazyTensor) -> LazyTensor:
    """Return the embedding, whose loading makes sure that the tied head beside it is the same."""

    def load() -> np.ndarray:
        array = tokens.load()
        if tokens.dtype != lm_head.dtype or not _same_bits(array, lm_head.load()):
            raise ValueError(
                f"{source}: {lm_head.name} differs from {tokens.name}, but tie_word_embeddings is "
                f"true (the default), so they must be equal; if the head is meant to be one of its "
                f"own, set tie_word_embeddings to false in the config"
            )
        return array

    return replace(tokens, load=load)


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    # Bits, not values: a NaN equals itself, and 0.0 is not -0.0.
    bits = np.dtype(f"u{a.dtype.itemsize}")
    return np.array_equal(a.view(bits), b.view(bits))


def _leaves(node: Any, path: tuple[str, ...]) -> Iterable[tuple[tuple[str, ...], LazyTensor]]:
    if isinstance(node, Mapping):
        for key, child in node.items():
            if not isinstance(key, str) or "." in key:
                raise ValueError(
                    f"the parameters have the key {key!r} under {'.'.join(path) or 'their root'}; "
                    f"keys must be strings without dots, layers' numbers too"
                )
            yield from _leaves(child, (*path, key))
        return
    leaf = node if hasattr(node, "shape") and hasattr(node, "dtype") else np.asarray(node)
    shape, dtype = tuple(map(int, leaf.shape)), str(leaf.dtype)
    yield path, LazyTensor(".".join(path), shape, dtype, lambda: np.asarray(leaf))
