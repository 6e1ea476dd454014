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
    """Convert a checkpoint to another format or dtype.

    The tokenizer and the other files of the checkpoint are copied.

    Args:
        source: checkpoint to read: a folder, a Hugging Face Hub id, or a folder of OpenAI's npy
            files.
        target: folder to write.
        format: format to write: huggingface (safetensors) or openai (npy files, always float32).
        dtype: dtype of the weights that are written; by default the source's.
        quantize: write int8 weights, a quarter of float32's size, which only this package reads; by
            default they are not quantized.
        max_shard_size: largest size of a weights file, such as 500MB; larger weights are split over
            several files. By default 5GB.
        pickle: write pytorch_model.bin in place of safetensors (needs torch).
        revision: branch, tag or commit of the checkpoint on the Hugging Face Hub; by default its
            main branch.
        local_files_only: read checkpoints of the Hub from the local cache alone, without the
            network.
    """
    if format == "openai" and (dtype or max_shard_size or pickle or quantize):
        raise ValueError(
            "--dtype, --quantize, --max-shard-size and --pickle cannot be combined with "
            "--format openai"
        )
    if quantize and pickle:
        raise ValueError("--pickle cannot be combined with --quantize: int8 needs safetensors")
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
    """Export a model as programs that JAX runs without this package.

    The output folder is a checkpoint in Hugging Face's layout, with its tokenizer. Beside the
    weights it has the program of the forward pass, forward.jax, and for a language model the
    forward pass with a KV cache, decode.jax.

    Args:
        model: checkpoint to export: a folder or a Hugging Face Hub id.
        target: folder to write.
        platforms: platforms that the programs run on.
        text: also write the programs as StableHLO text, forward.mlir and decode.mlir.
        dtype: dtype of the weights and of the computation; by default the checkpoint's.
        revision: branch, tag or commit of the checkpoint on the Hugging Face Hub; by default its
            main branch.
        local_files_only: read checkpoints of the Hub from the local cache alone, without the
            network.
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
    """Upload a checkpoint, a run or an adapter to the Hugging Face Hub.

    The access token is $HF_TOKEN, or the one that hf auth login has stored. Hidden files and the
    files that only a training run needs (its checkpoints, its tokenized texts, the folder of wandb)
    are not uploaded.

    Args:
        folder: folder to upload.
        repository: id of the model repository, OWNER/NAME; it is created if it does not exist.
        private: make a new repository private.
        commit_message: first line of the commit message; by default "Upload" and the name of the
            folder.
        revision: branch to upload to, which is created if it does not exist; by default the main
            branch.
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
    """Check a checkpoint's tensors, and its outputs against torch.

    The outputs of the published GPT-1 are also compared with recorded values. The command exits
    with status 1 if a check fails.

    Args:
        checkpoint: checkpoint to check: a folder or a Hugging Face Hub id.
        model: checkpoint to check, in place of the argument.
        revision: branch, tag or commit of the checkpoint on the Hugging Face Hub; by default its
            main branch.
        local_files_only: read checkpoints of the Hub from the local cache alone, without the
            network.
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
