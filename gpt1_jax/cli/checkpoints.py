"""The commands ``gpt1 convert``, ``export``, ``push`` and ``verify``."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from gpt1_jax._conversion import conversion
from gpt1_jax.cli.arguments import DType, MaybeCheckpoint, MaybeModel, Quantize, only_one
from gpt1_jax.config import OpenAIGPTConfig
from gpt1_jax.demo import resolve
from gpt1_jax.model import MODELS, OpenAIGPTLMHeadModel, from_pretrained
from gpt1_jax.pretrained import cast_params, saved_config
from gpt1_jax.quantization import quantized_if


def convert(
    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER|HUB-ID")],
    target: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")],
    format: Literal["huggingface", "openai"] = "huggingface",
    dtype: DType | None = None,
    quantize: Quantize = None,
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
        quantize: write int8 weights, a quarter of float32's size, which this package alone reads.
        max_shard_size: above it Hugging Face's weights are split over several files (5GB).
        pickle: write Hugging Face's pytorch_model.bin in place of safetensors; needs torch.
        revision: branch, tag or commit on the hub.
        local_files_only: do without the network.
    """
    if format == "openai" and (dtype or max_shard_size or pickle or quantize):
        raise ValueError(
            "--dtype, --quantize, --max-shard-size and --pickle do not go with --format openai"
        )
    if quantize and pickle:
        raise ValueError("--pickle does not go with --quantize: int8 weights are in safetensors")
    folder = resolve(source, revision=revision, local_files_only=local_files_only)
    if quantize is None:
        config, params = conversion.read(folder)
        OpenAIGPTConfig.from_dict(config)  # what no model can be made of is not worth writing
    else:
        model = quantized_if(from_pretrained(folder), quantize)
        config, params = saved_config(model), model.params
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
    print(f"{target}: {conversion.named_architecture(config)} in {format} format")


def export(
    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER|HUB-ID")],
    target: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")],
    platforms: tuple[Literal["cpu", "cuda", "tpu"], ...] = ("cpu", "cuda", "tpu"),
    text: bool = False,
    dtype: DType | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
) -> None:
    """Write a model as programs that JAX runs without this package, beside its weights.

    The folder is a checkpoint in Hugging Face's layout, with its tokenizer, and has the model's
    forward in forward.jax and, of a language model, the forward with a cache in decode.jax.

    Args:
        model: a checkpoint.
        target: the folder to write.
        platforms: that the programs are for.
        text: also write the programs as StableHLO text, forward.mlir and decode.mlir.
        dtype: of the weights and of the computation; the checkpoint's by default.
        revision: branch, tag or commit on the hub.
        local_files_only: do without the network.
    """
    from gpt1_jax.export import export_model

    folder = resolve(model, revision=revision, local_files_only=local_files_only)
    held = conversion.named_architecture(conversion.read_config(folder))
    cls = MODELS[held or OpenAIGPTLMHeadModel.__name__]
    export_model(
        cls.from_pretrained(folder, dtype=dtype),
        target,
        platforms=platforms,
        text=text,
        companions=folder,
    )
    print(f"{target}: {cls.__name__} for {', '.join(platforms)}")


def push(
    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")],
    repository: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="HUB-ID")],
    private: bool = False,
    commit_message: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> None:
    """Upload a checkpoint, a trained folder or an adapter to the Hugging Face hub.

    The access token is the one that ``hf auth login`` has stored, or $HF_TOKEN. Hidden files are
    left out, and what a training run alone needs: its checkpoints, its texts as tokens, and the
    folder of wandb.

    Args:
        folder: the folder to upload.
        repository: the id of a model on the hub, OWNER/NAME; it is created if need be.
        private: make a new repository private.
        commit_message: the first line of the commit; by default "Upload" and the folder's name.
        revision: the branch to upload to, created if need be; by default the main one.
        create_pr: open a pull request in place of a commit to the branch.
    """
    address = conversion.push_folder(
        folder,
        repository,
        private=private or None,
        commit_message=commit_message,
        revision=revision,
        create_pr=create_pr,
    )
    print(address)


def verify(
    checkpoint: MaybeCheckpoint = None,
    model: MaybeModel = None,
    revision: str | None = None,
    local_files_only: bool = False,
) -> None:
    """Check a checkpoint: whole, equal to torch, and, if it is the published GPT-1, to its outputs.

    Exits with 1 where a check fails.

    Args:
        checkpoint: a folder or hub id.
        model: a folder or hub id, in place of the argument.
        revision: branch, tag or commit on the hub.
        local_files_only: do without the network.
    """
    from gpt1_jax.cli.compilation_cache import enable_compilation_cache
    from gpt1_jax.verify import verify as checks

    enable_compilation_cache()
    failed = False
    source = only_one(checkpoint, model)
    for check in checks(source, revision=revision, local_files_only=local_files_only):
        print(check, flush=True)
        failed |= check.passed is False
    if failed:
        sys.exit(1)
