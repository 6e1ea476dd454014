"""The ``gpt1`` command."""

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

import conversion
from gpt1_jax.config import OpenAIGPTConfig
from gpt1_jax.generation import generate as generate_ids
from gpt1_jax.model import MODELS, OpenAIGPTForSequenceClassification, OpenAIGPTLMHeadModel
from gpt1_jax.pretrained import cast_params
from gpt1_jax.tokenizer import Tokenizer

DType = Literal["float32", "bfloat16", "float16"]
Model = Annotated[str, tyro.conf.arg(metavar="FOLDER|HUB-ID")]
app = tyro.extras.SubcommandApp()


@app.command
def generate(
    prompts: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PROMPT...")],
    model: Model,
    max_new_tokens: int = 40,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    seed: int | None = None,
    dtype: DType | None = None,
    ids: bool = False,
    revision: str | None = None,
    local_files_only: bool = False,
) -> None:
    """Continue one text or several, each printed with its continuation.

    Args:
        prompts: the beginnings of the texts.
        model: a checkpoint with a tokenizer.
        max_new_tokens: how many tokens to add.
        do_sample: draw tokens instead of taking the likeliest.
        temperature: below 1 for likelier tokens, above 1 for more surprising ones.
        top_k: draw from so many likeliest tokens.
        top_p: draw from the likeliest tokens that together have this probability.
        seed: of the draws; the n-th prompt draws with seed + n.
        dtype: of the computation; the checkpoint's by default.
        ids: print token ids instead of text.
        revision: branch, tag or commit on the hub.
        local_files_only: do without the network.
    """
    if not prompts:
        raise ValueError("give at least one prompt")
    hub = {"revision": revision, "local_files_only": local_files_only}
    tokenizer = Tokenizer.from_pretrained(model, **hub)
    encoded = [tokenizer.encode(prompt) for prompt in prompts]
    for prompt, tokens in zip(prompts, encoded, strict=True):
        if not tokens:
            raise ValueError(f"the prompt {prompt!r} is empty: it has no tokens")
    folder = conversion.resolve(model, **hub)
    held = conversion.named_architecture(conversion.read_config(folder))
    if held == OpenAIGPTForSequenceClassification.__name__:
        raise ValueError(f"{model} is a classification, {held}; it was not trained to write text")
    language_model = OpenAIGPTLMHeadModel.from_pretrained(folder, dtype=dtype)
    sequences = generate_ids(
        language_model,
        encoded,
        max_new_tokens=max_new_tokens,
        do_sample=do_sample,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
    )
    for sequence in sequences:
        print(" ".join(map(str, sequence)) if ids else tokenizer.decode(sequence))


@app.command
def convert(
    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER|HUB-ID")],
    target: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")],
    format: Literal["huggingface", "openai"] = "huggingface",
    dtype: DType | None = None,
    max_shard_size: str | None = None,
    pickle: bool = False,
    revision: str | None = None,
    local_files_only: bool = False,
) -> None:
    """Write a checkpoint in another format or dtype, with its tokenizer.

    Args:
        source: a Hugging Face folder or hub id, or a folder of OpenAI's npy files.
        target: the folder to write.
        format: Hugging Face's safetensors, or OpenAI's npy files.
        dtype: of the weights; the source's by default. OpenAI's format is always float32.
        max_shard_size: above it Hugging Face's weights are split over several files (5GB).
        pickle: write Hugging Face's pytorch_model.bin in place of safetensors; needs torch.
        revision: branch, tag or commit on the hub.
        local_files_only: do without the network.
    """
    if format == "openai" and (dtype or max_shard_size or pickle):
        raise ValueError("--dtype, --max-shard-size and --pickle do not go with --format openai")
    folder = conversion.resolve(source, revision=revision, local_files_only=local_files_only)
    config, params = conversion.read(folder)
    OpenAIGPTConfig.from_dict(config)  # what no model can be made of is not worth writing
    if dtype is not None:
        params = cast_params(params, dtype)
    conversion.write(
        target,
        config,
        params,
        format=format,
        max_shard_size=max_shard_size or "5GB",
        safe_serialization=not pickle,
        companions=folder,
    )
    print(f"{target}: {config['architectures'][0]} in {format} format")


@app.command
def tree(
    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER|HUB-ID")],
    revision: str | None = None,
    local_files_only: bool = False,
) -> None:
    """Print the modules of a model as torch prints them, and its number of parameters.

    Args:
        model: a checkpoint; only its configuration is read.
        revision: branch, tag or commit on the hub.
        local_files_only: do without the network.
    """
    from flax import nnx

    from gpt1_jax.explore import tree as show

    fields = conversion.read_config(model, revision=revision, local_files_only=local_files_only)
    cls = MODELS[conversion.named_architecture(fields) or OpenAIGPTLMHeadModel.__name__]
    config = OpenAIGPTConfig.from_dict(fields)
    abstract = nnx.eval_shape(lambda: cls(config, rngs=nnx.Rngs(0)))
    print(show(abstract))
    print(f"{abstract.num_parameters():,} parameters")


@app.command
def tokens(
    text: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="TEXT|ID...")],
    model: Model,
    ids: bool = False,
    revision: str | None = None,
    local_files_only: bool = False,
) -> None:
    """Show a text as tokens and their ids, or ids as tokens.

    Args:
        text: a text, or with --ids the ids.
        model: a folder or hub id with a tokenizer.
        ids: read ids instead of a text.
        revision: branch, tag or commit on the hub.
        local_files_only: do without the network.
    """
    from gpt1_jax.explore import token_table

    if not text:
        raise ValueError("give a text, or ids with --ids")
    tokenizer = Tokenizer.from_pretrained(
        model, revision=revision, local_files_only=local_files_only
    )
    if ids:
        words = [word for part in text for word in part.replace(",", " ").split()]
        if wrong := [word for word in words if not word.isdecimal()]:
            raise ValueError(f"{wrong[0]!r} is not a token id")
        numbers = [int(word) for word in words]
    else:
        numbers = tokenizer.encode(" ".join(text))
    if not numbers:
        raise ValueError(f"{' '.join(text)!r} has no tokens")
    print(token_table(tokenizer, numbers, ids_first=ids))
    if ids:
        print(tokenizer.decode(numbers))


@app.command
def verify(
    folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER|HUB-ID")],
    revision: str | None = None,
    local_files_only: bool = False,
) -> None:
    """Check a checkpoint: whole, equal to torch, and, if it is the published GPT-1, to its outputs.

    Exits with 1 where a check fails.

    Args:
        folder: a checkpoint.
        revision: branch, tag or commit on the hub.
        local_files_only: do without the network.
    """
    from gpt1_jax.verify import verify as checks

    failed = False
    for check in checks(folder, revision=revision, local_files_only=local_files_only):
        print(check, flush=True)
        failed |= check.passed is False
    if failed:
        sys.exit(1)


def main() -> None:
    """Run the command; wrong input is one message on standard error and exit status 2."""
    try:
        app.cli(prog="gpt1", description="GPT-1 in Flax.")
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError, ImportError) as error:
        print(f"gpt1: {error}", file=sys.stderr)
        sys.exit(2)
