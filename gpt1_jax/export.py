"""A model as programs in files, which JAX runs without this package on any of its platforms.

    export_model(model, "folder")

writes a checkpoint as ``save_pretrained`` does and, beside it, what ``jax.export`` makes of the
model: StableHLO, lowered for several platforms at once, for any number of rows and tokens. The
programs take the checkpoint's tensors under the checkpoint's own names, so whoever can read the one
can call the other.

What a program cannot do is look at its arguments before it runs: an id outside the vocabulary gives
NaN, and a mask of other values than 0 and 1 a row of NaN, where the model raises an error. Shapes
are checked, as JAX does it: a ValueError whose cause says that ``tokens <= 512`` was expected. A
batch of no rows, or of no tokens, is a ValueError too. Nor does a program know its number of rows,
and so few rows on a CPU are not multiplied in their fastest form (``nn/matmul.py``).

``jax.jit`` takes a program, but ``jax.vmap`` and ``jax.jvp`` do not, and ``jax.grad`` takes none
that is read from such a file. ``export_forward(model).serialize(vjp_order=1)`` makes a file with a
gradient, of about 2.5 times the size.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict
from jax import export

from gpt1_jax._conversion import conversion, files, huggingface
from gpt1_jax.model import (
    OpenAIGPTDoubleHeadsModel,
    OpenAIGPTForSequenceClassification,
    OpenAIGPTLMHeadModel,
)
from gpt1_jax.nn.attention import Cache
from gpt1_jax.pretrained import OpenAIGPTPreTrainedModel, flatten, generation_files, saved_config
from gpt1_jax.pure import merge, split

PLATFORMS = ("cpu", "cuda", "tpu")


def export_model(
    model: OpenAIGPTPreTrainedModel,
    folder: str | os.PathLike[str],
    *,
    platforms: Sequence[str] = PLATFORMS,
    text: bool = False,
    companions: str | os.PathLike[str] | None = None,
) -> None:
    """Write a model's checkpoint and its programs: all files, or none.

    Args:
        model: any of the four models; see ``export_forward`` and, for a language model, which gets
            both programs, ``export_decode``.
        folder: created if need be. It holds one checkpoint: weights that lie there in another
            format, and older programs, are removed.
        platforms: that the programs are for, some of ``PLATFORMS``.
        text: also write the programs as StableHLO text.
        companions: a checkpoint whose tokenizer is copied along.

    Raises:
        ValueError: the platforms are wrong, or attention is cuDNN's.
        OSError: the folder cannot be written.
    """
    programs = {files.FORWARD: export_forward(model, platforms)}
    if isinstance(model, OpenAIGPTLMHeadModel):
        programs[files.DECODE] = export_decode(model, platforms)
    saved = {name + files.PROGRAM: bytes(program.serialize()) for name, program in programs.items()}
    if text:
        saved |= {name + files.TEXT: it.mlir_module().encode() for name, it in programs.items()}
    conversion.write(
        folder,
        saved_config(model),
        model.params,
        # In one file, however large: the programs take all of its tensors.
        max_shard_size=2**63 - 1,
        companions=companions,
        files=saved | generation_files(model),
    )


def export_forward(
    model: OpenAIGPTPreTrainedModel, platforms: Sequence[str] = PLATFORMS
) -> export.Exported:
    """Return the forward of a model as a program for several platforms, without its weights.

    ``exported.call(weights, input_ids, attention_mask)`` takes the tensors of ``model.safetensors``
    by name, and int32 arrays (batch, tokens), of ``n_positions`` tokens at most. To the
    double-heads model they are (batch, choices, tokens), and ``mc_token_ids`` (batch, choices) the
    fourth argument. A classification without a ``pad_token_id`` takes one row, as the model does.

    It returns a dict: ``logits``, of the double-heads model ``mc_logits`` too, and of the model
    without a head ``last_hidden_state``.

    Args:
        model: any of the four models. Its dtypes and its precision are the program's.
        platforms: some of ``PLATFORMS``.

    Raises:
        ValueError: a platform that is not one of these, or none; attention of cuDNN's.
    """
    batch, choices, tokens = export.symbolic_shape(
        "batch, choices, tokens", constraints=[f"tokens <= {model.config.n_positions}"]
    )
    shape = (batch, tokens)
    if isinstance(model, OpenAIGPTDoubleHeadsModel):
        shape = (batch, choices, tokens)
    elif (
        isinstance(model, OpenAIGPTForSequenceClassification) and model.config.pad_token_id is None
    ):
        shape = (1, tokens)
    inputs = {"input_ids": _integers(*shape), "attention_mask": _integers(*shape)}
    if isinstance(model, OpenAIGPTDoubleHeadsModel):
        inputs["mc_token_ids"] = _integers(batch, choices)
    weights, merged = _by_saved_names(model)

    def forward(weights: Mapping[str, jax.Array], *arrays: jax.Array) -> dict[str, jax.Array]:
        given = dict(zip(inputs, arrays, strict=True))
        out = merged(weights)(
            **given,
            output_attentions=False,
            output_hidden_states=False,
        )
        return {name: array for name, array in vars(out).items() if array is not None}

    return _export(forward, platforms, weights, *inputs.values())


def export_decode(
    model: OpenAIGPTLMHeadModel, platforms: Sequence[str] = PLATFORMS
) -> export.Exported:
    """Return the cached forward of a language model as a program: a prompt, or one more token.

    ``exported.call(weights, input_ids, attention_mask, cache)`` reads tokens (batch, tokens) that
    follow those in the cache, and returns the ``logits`` (batch, V) after the last of them and the
    new ``cache``. Prompts of unequal lengths are padded on the left; the mask is that of the new
    tokens, and positions are counted over unpadded tokens alone.

    The cache is a dict with the fields of ``Cache``: ``keys`` and ``values``, n_layer zeros (batch,
    n_head, slots, n_embd / n_head) in the model's dtype; ``mask``, float32 zeros (batch, slots);
    ``index``, an int32 0. There are ``n_positions`` slots at most. More tokens than slots give NaN.

    Args:
        model: a language model. Its dtypes and its precision are the program's.
        platforms: some of ``PLATFORMS``.

    Raises:
        ValueError: a platform that is not one of these, or none; attention of cuDNN's.
    """
    constraints = ["tokens <= slots", f"slots <= {model.config.n_positions}"]
    sizes: Any = export.symbolic_shape("batch, tokens, slots", constraints=constraints)
    batch, tokens, slots = sizes
    empty = jax.eval_shape(lambda: Cache.empty(model.config, batch, slots, model.dtype))
    weights, merged = _by_saved_names(model)

    def decode(
        weights: Mapping[str, jax.Array],
        input_ids: jax.Array,
        attention_mask: jax.Array,
        cache: Mapping[str, Any],
    ) -> dict[str, object]:
        out = merged(weights)(
            input_ids,
            attention_mask,
            positions_from_mask=True,
            cache=Cache(**cache),
            logits_to_keep=1,
            output_attentions=False,
            output_hidden_states=False,
        )
        return {"logits": out.logits[:, -1], "cache": vars(out.cache)}

    ids = _integers(batch, tokens)
    return _export(decode, platforms, weights, ids, ids, vars(empty))


def _integers(*shape: object) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def _by_saved_names(
    model: OpenAIGPTPreTrainedModel,
) -> tuple[dict[str, jax.ShapeDtypeStruct], Callable[[Mapping[str, jax.Array]], Any]]:
    """Return what a checkpoint of the model holds, and the model as a function of that."""
    if model.attention == "cudnn":
        raise ValueError(
            "attention is 'cudnn', which no program for other platforms can hold: "
            "load the model with attention='manual' or 'xla' to export it"
        )
    structure, params = split(model)
    leaves = flatten(params)
    config, architecture = saved_config(model), type(model).__name__
    table = conversion.param_specs(config, architecture)
    rows = {huggingface.saved_name(row, config, architecture): row for row in table}

    def merged(weights: Mapping[str, jax.Array]) -> Any:
        arrays = {
            row.path: weights[name].T if row.transposed else weights[name]
            for name, row in rows.items()
        }
        return merge(structure, unflatten_dict(arrays))

    shapes = {
        name: jax.ShapeDtypeStruct(row.torch_shape, leaves[row.path].dtype)
        for name, row in rows.items()
    }
    return shapes, merged


def _export(
    function: Callable[..., object], platforms: Sequence[str], *arguments: object
) -> export.Exported:
    wrong = [platform for platform in platforms if platform not in PLATFORMS]
    if wrong or not platforms:
        got = f"has {wrong[0]!r}" if wrong else "is empty"
        raise ValueError(f"platforms {got}, but must be some of {', '.join(PLATFORMS)}")
    return export.export(jax.jit(function), platforms=list(dict.fromkeys(platforms)))(*arguments)
