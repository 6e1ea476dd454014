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
    """Print the modules of a model as torch prints them, and its number of parameters.

    The tree is what ``print(model)`` prints in transformers. The number of parameters follows on a
    line of its own.

    Args:
        checkpoint: a folder or hub id; only the configuration is read.
        model: a folder or hub id, in place of the argument.
        flax: print the layers with the names and arguments that they have in Flax.
        revision: branch, tag or commit on the hub.
        local_files_only: do without the network.
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
    """Show a text as tokens and their ids, or ids as tokens.

    Args:
        text: a text, or with --ids the ids.
        model: a folder or hub id with a tokenizer; by default the bundled demo model.
        ids: read ids instead of a text; 0-5 stands for 0 to 4, as Python's ranges do.
        pipeline: how text is prepared: huggingface, or original, as for GPT-1's training; the
            folder's by default.
        revision: branch, tag or commit on the hub.
        local_files_only: do without the network.
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
    """Show the tokens whose embeddings are nearest to a word's, or to a sum such as "king - man".

    Args:
        words: a word, or words with + and - between them, all between spaces. Those that begin with
            a sign go after "--".
        model: a checkpoint with a tokenizer; by default the bundled demo model.
        count: how many tokens.
        pipeline: how the words are prepared; see tokens.
        revision: branch, tag or commit on the hub.
        local_files_only: do without the network.
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

    It prints a table of the tokens. On a terminal the text comes first, coloured: the redder, the
    greater the surprise.
    Files are read as gpt1 score reads them. Several arguments are the words of one text.

    Args:
        texts: a text, a file of texts, or - for standard input.
        text: read the arguments as a text, even if a file has its name.
        model: a checkpoint with a tokenizer; by default the bundled demo model.
        adapter: a LoRA adapter to merge into the model, of gpt1 pretrain, gpt1 finetune or peft;
            without --model, into the base that it names.
        pipeline: how the text is prepared; see tokens.
        revision: branch, tag or commit on the hub.
        local_files_only: do without the network.
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
    """Draw what a model makes of a text.

    Args:
        kind: attention, where each token looks; next-tokens, what comes next, as a bar chart;
            logit-lens, what the model would say next after each of its layers.
        text: to read.
        out: the picture: .png, .svg, .pdf or what else matplotlib writes.
        model: a checkpoint with a tokenizer; by default the bundled demo model.
        layer: of the attention, from 0; by default the last one.
        head: of the attention, from 0; by default all.
        count: of next tokens; by default 10.
        pipeline: how the text is prepared; see tokens.
        revision: branch, tag or commit on the hub.
        local_files_only: do without the network.
    """
    for name, value, owner in (
        ("layer", layer, "attention"),
        ("head", head, "attention"),
        ("count", count, "next-tokens"),
    ):
        if value is not None and kind != owner:
            raise ValueError(f"--{name} goes with {owner}, not with {kind}")
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
