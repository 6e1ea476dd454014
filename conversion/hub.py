"""A folder here, or one that is downloaded from the Hugging Face hub."""

import os
from pathlib import Path

from conversion.files import expand_home, finish_writes

# What belongs to a checkpoint beside weights and config.
COMPANIONS = (
    "generation_config.json",
    "vocab.json",
    "merges.txt",
    "encoder_bpe_40000.json",  # OpenAI's names for the two
    "vocab_40000.bpe",
    "vocab.txt",  # BERT's
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "task.json",  # of a fine-tuned model
)
_LIGHT = ["config.json", *COMPANIONS]


def resolve(
    path_or_hub_id: str | os.PathLike[str],
    *,
    weights: bool = True,
    subfolder: str = "",
    variant: str | None = None,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    force_download: bool = False,
) -> Path:
    """Return the folder of a checkpoint, downloaded if it is not here.

    Args:
        path_or_hub_id: a folder, or the id of a model on the hub ("owner/name"). An existing folder
            comes first. What can only be a path (it starts with ``.``, ``/`` or ``~``, has more
            than one slash, or is a file) is never looked up on the hub.
        weights: download these too; if false, only config.json and ``COMPANIONS``.
        subfolder: the folder inside that one, or inside the repository, that holds the checkpoint.
        variant: of the weights to download, "fp16" for ``model.fp16.safetensors``.
        revision: a branch, tag or commit of the hub's repository.
        cache_dir: where downloads are kept; by default the hub's own cache.
        local_files_only: use what has been downloaded before.
        token: the access token for gated or private models; True takes the stored one.
        force_download: download even what is in the cache.

    Raises:
        FileNotFoundError: there is no such folder and no such model, or it cannot be downloaded;
            the message says why and what would be right.
        ValueError: ``subfolder`` leads out of the folder.
        OSError: a process was killed while it replaced the folder's files; see ``finish_writes``.
    """
    given = os.fspath(path_or_hub_id)
    path = expand_home(given)
    if Path(subfolder).is_absolute() or ".." in Path(subfolder).parts:
        raise ValueError(
            f"subfolder is {subfolder!r}; it must be the path of a folder inside {given}"
        )
    if given and path.is_dir():  # an empty path would be the working folder
        path = path / subfolder
        if not path.is_dir():
            raise FileNotFoundError(f"{given} has no folder {subfolder!r}")
        finish_writes(path)
        return path
    if path.is_file():
        raise FileNotFoundError(
            f"{given} is a file; a folder is expected, with config.json and model.safetensors in "
            f"it, or the id of a model on the Hugging Face hub"
        )
    is_path = (
        not isinstance(path_or_hub_id, str)
        or path.is_absolute()
        or given.startswith((".", "~"))
        or given.count("/") > 1
        or "\\" in given
        or not given
    )
    if is_path:
        raise FileNotFoundError(
            f"there is no folder {given!r}; expected a folder with config.json and "
            f"model.safetensors in it, or the id of a model on the Hugging Face hub"
        )

    from huggingface_hub import snapshot_download

    def download(patterns: list[str]) -> Path:
        whole = Path(
            snapshot_download(
                given,
                revision=revision,
                cache_dir=None if cache_dir is None else Path(cache_dir),
                local_files_only=local_files_only,
                token=token,
                force_download=force_download,
                allow_patterns=[(Path(subfolder) / name).as_posix() for name in patterns],
            )
        )
        return whole / subfolder

    safetensors = _weights("model", "safetensors", variant)
    pickles = _weights("pytorch_model", "bin", variant)  # most hold the same weights so too
    if variant is None:
        pickles += _weights("model.int8", "safetensors", None)  # see huggingface.INT8
    try:
        folder = download([*_LIGHT, *safetensors] if weights else _LIGHT)
        if weights and not any(any(folder.glob(name)) for name in safetensors[:-1]):
            folder = download([*_LIGHT, *safetensors, *pickles])
    except Exception as error:  # whatever the hub's client, the network or the disk raise
        raise FileNotFoundError(
            f"{given!r} is not a folder here and cannot be downloaded from the Hugging Face hub: "
            f"{_cause(error, revision)}"
        ) from error
    if not folder.is_dir():
        raise FileNotFoundError(f"{given!r} on the Hugging Face hub has no folder {subfolder!r}")
    if weights and not any(any(folder.glob(name)) for name in (*safetensors, *pickles)):
        raise FileNotFoundError(
            f"{given!r} is in the cache of downloads, in {folder}, without weights: download them "
            f"with local_files_only=False and without HF_HUB_OFFLINE, unless the model has none "
            f"such as {safetensors[0]} on the hub"
        )
    return folder


def push_folder(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    commit_message: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> str:
    """Upload a checkpoint to the Hugging Face hub, in one commit.

    Hidden files are left out, and what a training run alone needs: its checkpoints, its texts as
    tokens, and wandb's folder.

    Args:
        folder: a checkpoint in Hugging Face's layout, or an adapter.
        repo_id: the id of a model on the hub ("owner/name"), which is created if need be.
        private: whether a new repository is private; by default what the account is set to.
        token: an access token that may write; by default the stored one.
        commit_message: the commit's first line.
        revision: the branch, which is created if need be; by default the main one.
        create_pr: open a pull request in place of a commit to the branch.

    Returns:
        The address of the commit, or of the pull request.

    Raises:
        FileNotFoundError: the folder is not there or holds no checkpoint.
        ValueError: ``repo_id`` is not an id, or both ``revision`` and ``create_pr`` are given.
        OSError: the upload failed; the message says why and what would be right.
    """
    from huggingface_hub import HfApi, errors

    path = expand_home(folder)
    if not any((path / name).is_file() for name in ("config.json", *_PUSHED_ALONE)):
        raise FileNotFoundError(
            f"{path} holds no checkpoint to push: expected a folder with config.json, "
            f"{' or '.join(_PUSHED_ALONE)}"
        )
    if create_pr and revision is not None:
        raise ValueError(
            f"a pull request is opened against the main branch: leave out revision={revision!r} or "
            f"create_pr"
        )
    finish_writes(path)
    api = HfApi(token=token)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=path,
            commit_message=commit_message or f"Upload {path.resolve().name}",
            revision=revision,
            create_pr=create_pr,
            ignore_patterns=[".*", "**/.*", *(f"{name}/**" for name in _LEFT_OUT)],
        )
    except errors.HFValidationError as error:
        line = str(error).splitlines()[0].rstrip(".")
        raise ValueError(f"{repo_id!r} is not an id ({line}); an id is owner/name") from error
    except Exception as error:  # whatever the hub's client, the network or the disk raise
        raise OSError(f"cannot push {path} to {repo_id!r}: {_push_cause(error)}") from error
    return commit.pr_url or commit.commit_url


_LEFT_OUT = ("checkpoints", "tokens", "wandb")  # folders of a training run
_PUSHED_ALONE = ("adapter_config.json", "tokenizer.json")


def _push_cause(error: Exception) -> str:
    """Return one line: what failed, and what would be right."""
    from huggingface_hub import errors

    text = str(error).strip()
    line = text.splitlines()[0].rstrip(".") if text else type(error).__name__
    response = getattr(error, "response", None)
    if isinstance(error, errors.LocalTokenNotFoundError) or (
        response is not None and response.status_code in (401, 403)
    ):
        return f"it is not allowed ({line}); run `hf auth login` or give a token that may write"
    return f"{line}; check the connection, and push again"


def _weights(stem: str, suffix: str, variant: str | None) -> list[str]:
    """Patterns of a file of weights, of its shards, and last of their index."""
    if variant is None:
        return [f"{stem}.{suffix}", f"{stem}-*.{suffix}", f"{stem}.{suffix}.index.json"]
    return [
        f"{stem}.{variant}.{suffix}",
        f"{stem}.{variant}-*.{suffix}",
        f"{stem}-*.{variant}.{suffix}",  # as old versions of transformers named shards
        f"{stem}.{suffix}.index.{variant}.json",
    ]


def _cause(error: Exception, revision: str | None) -> str:
    """One line: what failed, and what would be right."""
    from huggingface_hub import errors

    text = str(error).strip()
    line = text.splitlines()[0].rstrip(".") if text else type(error).__name__
    # From the special to the general: a gated repository is a kind of one that is not found.
    if isinstance(error, errors.GatedRepoError):
        return (
            "access to it is gated; ask for access on its page there, then run `hf auth login` or "
            "give a token"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            "there is no such model, or it is private; GPT-1 is openai-community/openai-gpt (a "
            "private model needs a token)"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"it has no revision {revision!r}; give a branch, a tag or a whole commit hash"
    if isinstance(error, errors.HFValidationError):
        return f"that is not an id ({line}); an id is owner/name"
    if isinstance(error, errors.LocalEntryNotFoundError) and not _network(error):
        return (
            f"it is not in the cache of downloads, or not all of it, and the network is not to be "
            f"used ({line}); download it with local_files_only=False and without HF_HUB_OFFLINE"
        )
    if isinstance(error, OSError) or _network(error):
        return (
            f"{line}; check the connection, or download it elsewhere and give the path of the "
            f"folder"
        )
    return f"{type(error).__name__}: {line}"


def _network(error: BaseException) -> bool:
    """Return whether the failure began in the connection, not in a look at the cache."""
    from huggingface_hub import errors

    cause = error.__cause__
    return cause is not None and not isinstance(cause, errors.OfflineModeIsEnabled)
