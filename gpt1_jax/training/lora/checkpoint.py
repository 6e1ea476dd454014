"""The checkpoint that a base model and an adapter make together, merged."""

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any, Unpack

from flax import nnx

from gpt1_jax._conversion import layout
from gpt1_jax.config import OpenAIGPTConfig
from gpt1_jax.demo import HubOptions, resolve
from gpt1_jax.model import MODELS
from gpt1_jax.text.tokenizer import Tokenizer
from gpt1_jax.text.tokenizer_files import has_tokenizer
from gpt1_jax.training.lora.adapters import load_adapters, read_origin
from gpt1_jax.training.lora.held import MERGE_FIRST
from gpt1_jax.training.task_file import TASK, read_task


def merge_checkpoint(
    adapter: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | None = None,
    **hub: Unpack[HubOptions],
) -> None:
    """Write the checkpoint of a base model with an adapter merged.

    It has the adapter's tokenizer and task.json, or else the base's tokenizer. In the base's dtype.

    Args:
        adapter: its folder, as ``finetune``, ``pretrain`` or peft wrote it.
        out: the folder of the result; made if need be.
        model: the base; by default the one that the adapter names.
        **hub: where the base lies, if that is the hub.

    Raises:
        OSError: the adapter or its base is not found.
        ValueError: the adapter is of another model, or more than plain LoRA, or the base is int8.
    """
    adapter, out = Path(adapter), Path(out)
    _, _, saved = load_adapters(adapter)
    architecture, base = read_origin(adapter, saved)
    base = _find(adapter, base, hub) if model is None else resolve(model, **hub)
    config = OpenAIGPTConfig.from_pretrained(base)
    if layout.quantization(config.to_dict()) is not None:
        raise ValueError(
            f"{model or base} is int8, and an adapter cannot be merged into it: {MERGE_FIRST}"
        )
    named = adapter if has_tokenizer(adapter) else base
    tokenizer = Tokenizer.from_pretrained(named) if has_tokenizer(named) else None
    fields: dict[str, Any] = {}
    classes: dict[str, Any] = {}
    if (adapter / TASK).is_file() and tokenizer is not None:
        task, _ = read_task(adapter, tokenizer, config.n_positions)
        config = task.configure(config)
        if task.classes is not None:
            classes = {name: config.extra[name] for name in ("id2label", "label2id")}
        names = ("num_labels", "pad_token_id", "problem_type")
        fields = {name: getattr(config, name) for name in names}
    elif "score" in saved:
        fields = {"num_labels": saved["score"]["kernel"].shape[1]}
        if config.pad_token_id is None and tokenizer is not None:
            fields["pad_token_id"] = tokenizer.pad_token_id
    has_head = bool(saved.keys() - {"transformer"})
    merged = MODELS[architecture].from_pretrained(
        base, rngs=nnx.Rngs(0) if has_head else None, ignore_mismatched_sizes=has_head, **fields
    )
    if classes:
        merged.config = dataclasses.replace(merged.config, extra={**merged.config.extra, **classes})
    merged.load_adapter(adapter)
    merged.save_pretrained(out)
    if tokenizer is not None:
        tokenizer.save_pretrained(out)
    if (adapter / TASK).is_file():
        shutil.copyfile(adapter / TASK, out / TASK)


def _find(adapter: Path, base: str | None, hub: HubOptions) -> Path:
    """Return the folder of the base that an adapter names."""
    if not base:
        raise ValueError(f"{adapter} does not name its base model: it must be given")
    try:
        return resolve(base, **hub)
    except OSError as error:
        raise FileNotFoundError(
            f"{adapter} is an adapter of {base!r}, which is not found: the base model must be "
            f"given ({str(error).splitlines()[0]})"
        ) from None
