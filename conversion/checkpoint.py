"""Reading and writing whole checkpoints, in whatever format they are."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from conversion import config_file, huggingface, openai
from conversion.config_file import CONFIG, named_architecture, required_architecture
from conversion.files import output_path
from conversion.hub import COMPANIONS, resolve
from conversion.layout import (
    ARCHITECTURES,
    BASE,
    CLASSIFICATION,
    DOUBLE_HEADS,
    LM_HEAD,
    one_layer,
    param_specs,
)
from conversion.match import LazyTensor, match_tensors, match_tree
from conversion.tree import Leaf, load_params, same


def read(
    path_or_hub_id: str | os.PathLike[str],
    *,
    architecture: str | None = None,
    new_head: bool = False,
    ignore_mismatched_sizes: bool = False,
    overrides: Mapping[str, Any] = MappingProxyType({}),
    leaf: Leaf = same,
    variant: str | None = None,
    **hub: Any,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a checkpoint: Hugging Face's layout first, else OpenAI's.

    Everything is checked against the table before any weights are read.

    Args:
        path_or_hub_id: a folder, or the id of a model on the Hugging Face hub.
        architecture: one of ``ARCHITECTURES``; by default see ``read_architecture``. The heads of
            other architectures are left out.
        new_head: accept weights that hold nothing of the architecture's own head (``score``,
            ``multiple_choice_head``); it is left out of the result, for the caller to initialise.
        ignore_mismatched_sizes: treat such a head of another shape, such as another number of
            labels, as missing.
        overrides: fields that take the place of the config's; the parameters must fit them.
        leaf: called with each numpy array as soon as it is read, the largest first; its result
            goes into the tree. With ``jnp.asarray``, about one copy of the file is held at most.
        variant: of the weights, "fp16" for ``model.fp16.safetensors``.
        **hub: the other arguments of ``resolve``.

    Returns:
        The fields of config.json, all of them, with ``architectures`` the one read; and the nested
        dict of parameters, the arrays in the dtypes of the file, bit by bit.

    Raises:
        FileNotFoundError: there is no such folder or model, or a file of it is missing.
        MissingHeadError: only the architecture's own head is missing (a ValueError).
        ValueError: anything else is wrong; the message names the file and all that is wrong.
        ImportError: the weights are pickles and torch is not installed.
    """
    if architecture is not None and architecture not in ARCHITECTURES:
        raise ValueError(
            f"the architecture is {architecture!r}; it must be one of {', '.join(ARCHITECTURES)}"
        )
    folder = resolve(path_or_hub_id, variant=variant, **hub)
    source, config, found, held = _open(folder, variant)
    architecture = architecture or held
    config = {**config, **overrides}
    try:
        param_specs(one_layer(config), architecture)
    except ValueError as error:  # a field that only this architecture uses
        raise ValueError(f"{folder / CONFIG}: {error}") from None
    fitted = match_tensors(
        str(source),
        found,
        config,
        architecture,
        new_head=new_head,
        ignore_mismatched_sizes=ignore_mismatched_sizes,
        given=overrides,
    )
    return {**config, "architectures": [architecture]}, load_params(fitted, leaf)


def read_architecture(
    path_or_hub_id: str | os.PathLike[str], *, variant: str | None = None, **hub: Any
) -> str:
    """Return the architecture of a checkpoint: one of ``ARCHITECTURES``.

    It is the first that the config names. Where that is none of these, the names of the tensors
    show it: those of a head, or the prefix ``transformer.``; OpenAI's files hold a language model.

    Args:
        path_or_hub_id: a folder, or the id of a model on the Hugging Face hub.
        variant: of the weights, "fp16" for ``model.fp16.safetensors``.
        **hub: the other arguments of ``resolve``.

    Raises:
        FileNotFoundError: there is no such folder or model, or a file of it is missing.
        ValueError: a file is damaged, or is not of a GPT-1.
    """
    folder = resolve(path_or_hub_id, variant=variant, **hub)
    if (folder / CONFIG).is_file():
        named = named_architecture(config_file.read_config(folder))
        if named is not None:
            return named
    return _open(folder, variant)[-1]


def _open(
    folder: Path, variant: str | None
) -> tuple[Path, dict[str, Any], Sequence[LazyTensor], str]:
    """Return the file or folder of the weights, the config, the tensors, and the architecture."""
    weights = huggingface.weights_file(folder, variant)
    if weights is not None:
        config = config_file.read_config(folder)
        found = huggingface.open_weights(weights)
        shown = _shown_architecture(one.name for one in found)
    elif variant is None and (folder / openai.SHAPES).is_file():
        weights, (config, found) = folder, openai.open_folder(folder)
        shown = LM_HEAD
    else:
        looked = huggingface.weights_names(variant) + ([] if variant else [openai.SHAPES])
        raise FileNotFoundError(f"{folder} holds no weights; looked for {', '.join(looked)}")
    return weights, config, found, named_architecture(config) or shown


def write(
    folder: str | os.PathLike[str],
    config: Mapping[str, Any],
    params: Mapping[str, Any],
    *,
    format: Literal["huggingface", "openai"] = "huggingface",
    max_shard_size: int | str = "5GB",
    safe_serialization: bool = True,
    companions: str | os.PathLike[str] | None = None,
    files: Mapping[str, bytes] = MappingProxyType({}),
) -> None:
    """Write a checkpoint that transformers, or OpenAI's own code, loads.

    The folder is changed as a whole or not at all. It holds one checkpoint: weights that lie there
    in another format, or as other shards, are removed. Files of other kinds are left untouched.

    Args:
        folder: made if it does not exist.
        config: the fields of config.json, written as they are; ``architectures``, whose first
            must be one of ``ARCHITECTURES``, ``model_type`` and ``dtype`` are set.
        params: the nested dict of parameters; leaves are anything that ``np.asarray`` takes,
            float32, bfloat16 or float16.
        format: "huggingface", or "openai", which holds no heads and is always float32.
        max_shard_size: Hugging Face's weights above this size are split into several files.
        safe_serialization: model.safetensors; if false, pytorch_model.bin, which needs torch.
        companions: a folder whose other files of a checkpoint, such as the tokenizer's, are copied
            along.
        files: contents of files beside Hugging Face's weights that belong to them, by their names.

    Raises:
        ValueError: the parameters do not fit the config, the format cannot hold them, or the path
            is empty.
        OSError: the folder cannot be written, or another process is writing there.
        ImportError: torch is needed and not installed.
    """
    architecture = required_architecture(config)
    leaves = match_tree(params, config, architecture)
    folder = output_path(folder)
    copies = [] if companions is None else _companions(Path(companions), folder)
    if format == "huggingface":
        huggingface.write_folder(
            folder,
            config,
            architecture,
            leaves,
            copies,
            files=files,
            max_shard_size=max_shard_size,
            safe_serialization=safe_serialization,
        )
    elif format == "openai":
        if max_shard_size != "5GB" or not safe_serialization or files:
            raise ValueError(
                "OpenAI's format is ten npy files: max_shard_size, safe_serialization and files "
                "are Hugging Face's alone"
            )
        openai.write_folder(folder, config, architecture, leaves, copies)
    else:
        raise ValueError(f"format is {format!r}; it must be 'huggingface' or 'openai'")


def read_config(path_or_hub_id: str | os.PathLike[str], **hub: Any) -> dict[str, Any]:
    """Read the fields of a checkpoint's config.json, or, for OpenAI's files, what the shapes show.

    Args:
        path_or_hub_id: a folder, or the id of a model on the Hugging Face hub.
        **hub: see ``resolve``; no weights are downloaded.

    Raises:
        FileNotFoundError: there is no such folder, model or file.
        ValueError: the file is not the config of a GPT-1.
    """
    folder = resolve(path_or_hub_id, weights=False, **hub)
    if huggingface.weights_file(folder) is None and (folder / openai.SHAPES).is_file():
        return openai.open_folder(folder)[0]
    return config_file.read_config(folder)


def _companions(source: Path, target: Path) -> list[Path]:
    """Return the files of ``source`` to copy to ``target``: what is neither weights nor config."""
    if target.is_dir() and source.samefile(target):
        return []
    return [source / name for name in COMPANIONS if (source / name).is_file()]


def _shown_architecture(names: Iterable[str]) -> str:
    """Return the architecture that the names of tensors show."""
    names = tuple(names)
    if any(name.startswith("score.") for name in names):
        return CLASSIFICATION
    if any(name.startswith("multiple_choice_head.") for name in names):
        return DOUBLE_HEADS
    if any(name.startswith(("transformer.", "lm_head.")) for name in names):
        return LM_HEAD
    return BASE
