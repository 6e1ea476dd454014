"""The commands ``gpt1 tree``, ``tokens``, ``nearest``, ``surprisal`` and ``picture``."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro
from flax import nnx

from gpt1_jax._conversion import conversion
from gpt1_jax.cli.adapters import takes_adapter
from gpt1_jax.cli.arguments import Adapter, MaybeCheckpoint, MaybeModel, Model, only_one
from gpt1_jax.cli.compilation_cache import enable_compilation_cache
from gpt1_jax.cli.texts import Texts, read_texts
from gpt1_jax.config import OpenAIGPTConfig
from gpt1_jax.demo import DEMO, HubOptions, resolve
from gpt1_jax.explore.display import show
from gpt1_jax.explore.embeddings import nearest as neighbours_of
from gpt1_jax.explore.forward_trace import logit_lens, next_tokens, trace_forward
from gpt1_jax.explore.forward_trace import surprisal as surprisal_of
from gpt1_jax.explore.module_tree import tree as tree_of
from gpt1_jax.explore.pictures import draw_attention, draw_logit_lens, draw_next_tokens
from gpt1_jax.explore.tokens import token_table
from gpt1_jax.model import MODELS, OpenAIGPTLMHeadModel, OpenAIGPTModel
from gpt1_jax.quantization import quantize_as_config
from gpt1_jax.scoring import score
from gpt1_jax.text.tokenizer import Tokenizer
from gpt1_jax.text.tokenizer_files import Pipeline

Kind = Literal["attention", "next-tokens", "logit-lens"]


def tree(
    checkpoint: MaybeCheckpoint = None,
    model: MaybeModel = None,
    flax: bool = False,
    revision: str | None = None,
    local_files_only: bool = False,
) -> None:
    """Print a model's modules as torch prints them, and its parameters.

    The tree is what ``print(model)`` prints in transformers. The number of parameters follows on a
    line of its own.

    Args:
        checkpoint: checkpoint whose configuration is read: a folder or a Hugging Face Hub id.
        model: checkpoint whose configuration is read, in place of the argument.
        flax: print the layers with the names and arguments that they have in Flax.
        revision: branch, tag or commit of the checkpoint on the Hugging Face Hub; by default its
            main branch.
        local_files_only: read checkpoints of the Hub from the local cache alone, without the
            network.
    """
    source = only_one(checkpoint, model)
    folder = resolve(source, weights=False, revision=revision, local_files_only=local_files_only)
    fields = conversion.read_config(folder)
    cls = MODELS[conversion.named_architecture(fields) or OpenAIGPTLMHeadModel.__name__]
    config = OpenAIGPTConfig.from_dict(fields)
    abstract = nnx.eval_shape(lambda: quantize_as_config(cls(config, rngs=nnx.Rngs(0))))
    print(tree_of(abstract, flax=flax))
    print(f"{abstract.num_parameters():,} parameters")


def tokens(
    text: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="TEXT|ID...")],
    model: Model = DEMO,
    ids: bool = False,
    pipeline: Pipeline | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
) -> None:
    """Show the tokens and ids of a text, or the tokens of ids.

    Args:
        text: text to tokenize, or with --ids the ids to decode.
        model: folder or Hugging Face Hub id of a checkpoint or tokenizer; by default the bundled
            demo model.
        ids: read ids in place of a text; the range 0-5 stands for 0 to 4, as in Python.
        pipeline: text preprocessing: huggingface, as transformers does it, or original, as for
            GPT-1's own training (needs the extra "text"); by default the checkpoint's.
        revision: branch, tag or commit of the checkpoint on the Hugging Face Hub; by default its
            main branch.
        local_files_only: read checkpoints of the Hub from the local cache alone, without the
            network.
    """
    if not text:
        raise ValueError("give a text, or ids with --ids")
    tokenizer = Tokenizer.from_pretrained(
        model, pipeline=pipeline, revision=revision, local_files_only=local_files_only
    )
    given: str | list[int] = " ".join(text)
    if ids:
        words = given.replace(",", " ").split()
        given = [id_ for word in words for id_ in _ids(word, len(tokenizer))]
    table = token_table(tokenizer, given)
    if not table.ids:
        raise ValueError(f"{' '.join(text)!r} has no tokens")
    show(table, sys.stdout)
    if ids:
        print(table.text)


def _ids(word: str, size: int) -> Sequence[int]:
    """The id that a word is, or those of a range, such as 0-5."""
    first, dash, end = word.partition("-")
    if not re.fullmatch("[0-9]+(-[0-9]+)?", word):
        raise ValueError(f"{word!r} is not a token id, nor a range of ids such as 0-5")
    if dash and int(first) >= int(end):
        raise ValueError(f"the range {word} is empty: its end, {end}, must be above {first}")
    if dash and int(end) > size:
        raise ValueError(f"the range {word} is out of range: ids are 0 to {size - 1}")
    return range(int(first), int(end) if dash else int(first) + 1)


def nearest(
    words: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="WORD...")],
    model: Model = DEMO,
    count: int = 10,
    pipeline: Pipeline | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
) -> None:
    """Show the tokens nearest to a word or to a sum such as "king - man".

    The distance is the cosine between rows of the token embedding.

    Args:
        words: word, or words with + and - between them, all separated by spaces. Words that begin
            with a sign go after "--".
        model: checkpoint to use: a folder or a Hugging Face Hub id, with a tokenizer; by default
            the bundled demo model.
        count: number of tokens to show.
        pipeline: text preprocessing: huggingface, as transformers does it, or original, as for
            GPT-1's own training (needs the extra "text"); by default the checkpoint's.
        revision: branch, tag or commit of the checkpoint on the Hugging Face Hub; by default its
            main branch.
        local_files_only: read checkpoints of the Hub from the local cache alone, without the
            network.
    """
    enable_compilation_cache()
    tokenizer = Tokenizer.from_pretrained(
        model, pipeline=pipeline, revision=revision, local_files_only=local_files_only
    )
    loaded = OpenAIGPTModel.from_pretrained(
        model, revision=revision, local_files_only=local_files_only
    )
    show(neighbours_of(loaded, tokenizer, " ".join(words), count), sys.stdout)


@takes_adapter(DEMO)
def surprisal(
    texts: Texts,
    text: bool = False,
    model: MaybeModel = None,
    adapter: Adapter = None,
    pipeline: Pipeline | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
) -> None:
    """Show how much each token of a text surprises a model, in bits.

    The output is a table of the tokens. On a terminal the coloured text comes first, and red marks
    a great surprisal. Files are read as gpt1 score reads them. Several arguments are the words of
    one text.

    Args:
        texts: text, file of texts, or - for standard input.
        text: treat the arguments as a text, even if a file has its name.
        model: checkpoint to use: a folder or a Hugging Face Hub id, with a tokenizer; by default
            the bundled demo model.
        adapter: folder of a LoRA adapter, written by gpt1 pretrain, gpt1 finetune or peft, to merge
            into the model; without --model, it is merged into the base model that the adapter
            names.
        pipeline: text preprocessing: huggingface, as transformers does it, or original, as for
            GPT-1's own training (needs the extra "text"); by default the checkpoint's.
        revision: branch, tag or commit of the checkpoint on the Hugging Face Hub; by default its
            main branch.
        local_files_only: read checkpoints of the Hub from the local cache alone, without the
            network.
    """
    assert model is not None  # see ``takes_adapter``
    given = read_texts([" ".join(texts)] if texts else [], force_text=text)
    if not isinstance(given[0].given, str):
        raise ValueError(f"{given[0].place}: surprisal needs texts; gpt1 score takes ids")
    loaded, tokenizer = _load(model, pipeline, revision, local_files_only)
    contexts = [each.context for each in given]
    for found in score(loaded, [each.given for each in given], contexts, tokenizer=tokenizer):
        show(surprisal_of(found), sys.stdout)


def picture(
    kind: Annotated[Kind, tyro.conf.Positional],
    text: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="TEXT...")],
    out: Annotated[Path, tyro.conf.arg(metavar="FILE")],
    model: Model = DEMO,
    layer: Annotated[int | None, tyro.conf.arg(help_behavior_hint="")] = None,
    head: Annotated[int | None, tyro.conf.arg(help_behavior_hint="")] = None,
    count: Annotated[int | None, tyro.conf.arg(help_behavior_hint="")] = None,
    pipeline: Pipeline | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
) -> None:
    """Draw attention weights, next tokens or a logit lens of a text.

    Args:
        kind: what to draw: attention, the weights with which tokens attend to earlier ones;
            next-tokens, a bar chart of the likeliest next tokens; or logit-lens, the next token
            that each layer would predict.
        text: text that the model reads.
        out: picture to write, as .png, .svg, .pdf or another format of matplotlib.
        model: checkpoint to use: a folder or a Hugging Face Hub id, with a tokenizer; by default
            the bundled demo model.
        layer: layer of the attention weights, counted from 0; by default the last.
        head: head of the attention weights, counted from 0; by default all heads.
        count: number of next tokens to draw; by default 10.
        pipeline: text preprocessing: huggingface, as transformers does it, or original, as for
            GPT-1's own training (needs the extra "text"); by default the checkpoint's.
        revision: branch, tag or commit of the checkpoint on the Hugging Face Hub; by default its
            main branch.
        local_files_only: read checkpoints of the Hub from the local cache alone, without the
            network.
    """
    for name, value, owner in (
        ("layer", layer, "attention"),
        ("head", head, "attention"),
        ("count", count, "next-tokens"),
    ):
        if value is not None and kind != owner:
            raise ValueError(f"--{name} has no effect on {kind}: it is for {owner}")
    loaded, tokenizer = _load(model, pipeline, revision, local_files_only)
    trace = trace_forward(loaded, tokenizer, " ".join(text))
    if kind == "attention":
        last = len(trace.attentions) - 1
        drawn = draw_attention(trace, last if layer is None else layer, head)
    elif kind == "next-tokens":
        drawn = draw_next_tokens(next_tokens(trace, 10 if count is None else count))
    else:
        drawn = draw_logit_lens(logit_lens(loaded, trace))
    drawn.save(out)
    print(out)


def _load(
    model: str, pipeline: Pipeline | None, revision: str | None, local_files_only: bool
) -> tuple[OpenAIGPTLMHeadModel, Tokenizer]:
    enable_compilation_cache()
    hub: HubOptions = {"revision": revision, "local_files_only": local_files_only}
    tokenizer = Tokenizer.from_pretrained(model, pipeline=pipeline, **hub)
    return OpenAIGPTLMHeadModel.from_pretrained(model, **hub), tokenizer


COMMANDS = (tree, tokens, nearest, surprisal, picture)
