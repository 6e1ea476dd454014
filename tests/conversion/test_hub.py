"""The hub through a stub of its HTTP interface: nothing here reaches a network."""

import hashlib
import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.utils._http import default_client_factory, hf_request_event_hook

from conversion import ARCHITECTURES, read, read_config, resolve

httpx2 = pytest.importorskip("httpx2", reason="huggingface_hub's HTTP client")

BASE, LM_HEAD, DOUBLE_HEADS, CLASSIFICATION = ARCHITECTURES
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """One repository, "owner/gpt1", with a branch "main"."""

    def __init__(self, files: dict[str, bytes]):
        self.files = files
        self.fetched: list[str] = []
        self.asked = 0
        self.failure: Exception | None = None

    def __call__(self, request: Any) -> Any:
        self.asked += 1
        if self.failure is not None:
            raise self.failure
        path = request.url.path
        if path.startswith("/api/models/owner/gated/"):
            return self.refuse(403, "GatedRepo")
        if not path.startswith(("/api/models/owner/gpt1/", "/owner/gpt1/resolve/")):
            return self.refuse(401, "RepoNotFound")
        if path.startswith("/api/"):
            kind, _, revision = path.removeprefix("/api/models/owner/gpt1/").partition("/")
            if revision not in ("main", COMMIT):
                return self.refuse(404, "RevisionNotFound")
            if kind == "tree":
                return httpx2.Response(200, json=[self.entry(name) for name in self.files])
            siblings = [{"rfilename": name} for name in self.files]
            info = {"id": "owner/gpt1", "sha": COMMIT, "siblings": siblings}
            return httpx2.Response(200, json=info)
        name = path.removeprefix("/owner/gpt1/resolve/").partition("/")[2]
        data = self.files[name]
        headers = {"ETag": f'"{self.digest(data)}"', "X-Repo-Commit": COMMIT}
        if request.method == "HEAD":
            return httpx2.Response(200, headers=headers | {"Content-Length": str(len(data))})
        self.fetched.append(name)
        return httpx2.Response(200, headers=headers, content=data)

    def entry(self, name):
        data = self.files[name]
        return {"type": "file", "path": name, "size": len(data), "oid": self.digest(data)}

    @staticmethod
    def digest(data):
        return hashlib.sha1(data).hexdigest()

    @staticmethod
    def refuse(status, code):
        return httpx2.Response(status, headers={"X-Error-Code": code}, json={"error": code})


@pytest.fixture
def repository(checkpoint, tmp_path) -> dict[str, bytes]:
    folder = checkpoint(BASE, architectures=[LM_HEAD]).save(tmp_path / "repository")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return files | {
        "vocab.json": b"{}",
        "README.md": b"readme",
        "tf_model.h5": b"tensorflow",
        "pytorch_model.bin": b"pickle",
        "onnx/model.safetensors": b"another format",
    }


@pytest.fixture
def hub(repository, monkeypatch, tmp_path):
    stub = Hub(repository)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    transport = httpx2.MockTransport(stub)
    hooks = {"request": [hf_request_event_hook]}  # it is what keeps HF_HUB_OFFLINE
    huggingface_hub.set_client_factory(
        lambda: httpx2.Client(transport=transport, event_hooks=hooks)
    )
    yield stub
    huggingface_hub.set_client_factory(default_client_factory)


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


def test_read_downloads_only_needed_files(hub, cache, checkpoint, identical):
    config, params = read("owner/gpt1", cache_dir=cache)
    assert identical(params, {"transformer": checkpoint(BASE).params})
    assert config["architectures"] == [LM_HEAD]
    assert sorted(hub.fetched) == ["config.json", "model.safetensors", "vocab.json"]


def test_resolve_reuses_the_cache(hub, cache):
    folder = resolve("owner/gpt1", cache_dir=cache)
    assert folder.name == COMMIT
    hub.fetched.clear()
    assert resolve("owner/gpt1", cache_dir=cache, revision=COMMIT) == folder
    assert hub.fetched == []
    asked = hub.asked
    assert resolve("owner/gpt1", cache_dir=cache, local_files_only=True) == folder
    assert hub.asked == asked
    resolve("owner/gpt1", cache_dir=cache, force_download=True)
    assert sorted(hub.fetched) == ["config.json", "model.safetensors", "vocab.json"]


def test_resolve_fetches_pickles_only_without_safetensors(hub, cache):
    del hub.files["model.safetensors"]
    folder = resolve("owner/gpt1", cache_dir=cache)
    assert sorted(hub.fetched) == ["config.json", "pytorch_model.bin", "vocab.json"]
    assert (folder / "pytorch_model.bin").read_bytes() == b"pickle"


def test_read_config_fetches_no_weights(hub, cache):
    hub.files |= {"encoder_bpe_40000.json": b"vocabulary", "vocab_40000.bpe": b"merges"}
    assert read_config("owner/gpt1", cache_dir=cache)["architectures"] == [LM_HEAD]
    light = ["config.json", "encoder_bpe_40000.json", "vocab.json", "vocab_40000.bpe"]
    assert sorted(hub.fetched) == light
    del hub.files["model.safetensors"]
    resolve("owner/gpt1", cache_dir=cache, weights=False, force_download=True)
    assert sorted(hub.fetched) == sorted(2 * light)


def test_read_fetches_only_missing_weights(hub, cache, identical, checkpoint):
    folder = resolve("owner/gpt1", cache_dir=cache, weights=False)
    assert not list(folder.glob("*model*"))
    hub.fetched.clear()
    _, params = read("owner/gpt1", cache_dir=cache)
    assert identical(params, {"transformer": checkpoint(BASE).params})
    assert hub.fetched == ["model.safetensors"]


def test_read_fetches_shards_and_index(hub, cache):
    data = hub.files.pop("model.safetensors")
    name = "model-00001-of-00001.safetensors"
    names = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    places = {tensor: name for tensor in names if tensor != "__metadata__"}
    hub.files |= {
        name: data,
        "model.safetensors.index.json": json.dumps({"weight_map": places}).encode(),
    }
    read("owner/gpt1", cache_dir=cache)
    assert name in hub.fetched
    assert "model.safetensors.index.json" in hub.fetched


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("owner/other", {}, "there is no such model, or it is private; GPT-1 is openai-community/"),
        ("openai", {}, "there is no such model, or it is private; GPT-1 is openai-community/"),
        ("owner/gated", {}, "access to it is gated; ask for access"),
        ("owner/gpt1", {"revision": "v2"}, "it has no revision 'v2'; give a branch, a tag or"),
        ("owner/gpt1", {"local_files_only": True}, "it is not in the cache of downloads"),
        ("no--such..id!!", {}, "that is not an id ("),
    ],
)
def test_read_reports_hub_refusal_in_one_line(hub, cache, name, options, message):
    with pytest.raises(FileNotFoundError) as error:
        read(name, cache_dir=cache, **options)
    text = str(error.value)
    assert text.startswith(
        f"{name!r} is not a folder here and cannot be downloaded from the Hugging Face"
    )
    assert message in text
    assert "\n" not in text


def test_resolve_without_network_needs_the_cache(hub, cache):
    hub.failure = httpx2.ConnectError("Name or service not known")
    with pytest.raises(FileNotFoundError) as error:
        resolve("owner/gpt1", cache_dir=cache)
    text = str(error.value)
    assert "Name or service not known; check the connection, or download it elsewhere" in text
    assert "\n" not in text

    hub.failure = None
    folder = resolve("owner/gpt1", cache_dir=cache)
    hub.failure = httpx2.ConnectError("Name or service not known")
    assert resolve("owner/gpt1", cache_dir=cache) == folder  # what was downloaded still serves


def test_resolve_reports_snapshot_without_weights(hub, cache):
    # As other programs leave it, which ask for one file.
    repository = cache / "models--owner--gpt1"
    for file, text in (("refs/main", COMMIT), (f"snapshots/{COMMIT}/config.json", "{}")):
        (repository / file).parent.mkdir(parents=True)
        (repository / file).write_text(text)
    message = (
        r"'owner/gpt1' is in the cache of downloads, in .*, without weights: download them with "
        r"local_files_only=False and without HF_HUB_OFFLINE, unless"
    )
    with pytest.raises(FileNotFoundError, match=message):
        resolve("owner/gpt1", cache_dir=cache, local_files_only=True)
    assert resolve("owner/gpt1", cache_dir=cache, weights=False, local_files_only=True).is_dir()


def test_resolve_respects_offline_mode(hub, cache, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="without HF_HUB_OFFLINE") as error:
        resolve("owner/gpt1", cache_dir=cache)
    assert "\n" not in str(error.value)
    assert hub.asked == 0


def test_resolve_prefers_local_folders(hub, tmp_path, monkeypatch):
    (tmp_path / "owner" / "gpt1").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("owner/gpt1") == Path("owner/gpt1")
    assert resolve(tmp_path / "owner") == tmp_path / "owner"
    assert resolve("~/owner") == tmp_path / "owner"
    assert hub.asked == 0


def test_resolve_never_looks_up_paths(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("./a", "../a", "/no/such", "~/no/such", "a/b/c", "a\\b", "", Path("a/b")):
        with pytest.raises(FileNotFoundError, match=r"there is no folder '.*'; expected a folder"):
            resolve(path)
    Path("model.safetensors").touch()
    with pytest.raises(
        FileNotFoundError, match=r"model.safetensors is a file; a folder is expected"
    ):
        resolve("model.safetensors")
    assert hub.asked == 0


def test_read_fetches_only_the_subfolder(hub, cache, identical, checkpoint):
    inside = {f"deep/er/{name}": data for name, data in hub.files.items() if "onnx" not in name}
    hub.files |= inside | {"deep/model.safetensors": b"another model"}
    _, params = read("owner/gpt1", cache_dir=cache, subfolder="deep/er")
    assert identical(params, {"transformer": checkpoint(BASE).params})
    needed = ["config.json", "model.safetensors", "vocab.json"]
    assert sorted(hub.fetched) == [f"deep/er/{name}" for name in needed]
    assert read_config("owner/gpt1", cache_dir=cache, subfolder="deep/er")["n_layer"] == 2
    for weights in (True, False):
        with pytest.raises(FileNotFoundError, match=r"'owner/gpt1' .* has no folder 'absent'"):
            resolve("owner/gpt1", cache_dir=cache, subfolder="absent", weights=weights)


def test_read_fetches_only_the_variant(hub, cache, identical, checkpoint):
    half = checkpoint(BASE, "float16")
    folder = half.save(cache.parent / "half")
    hub.files["model.fp16.safetensors"] = (folder / "model.safetensors").read_bytes()
    hub.files["pytorch_model.fp16.bin"] = b"pickle"
    _, params = read("owner/gpt1", cache_dir=cache, variant="fp16")
    assert identical(params, {"transformer": half.params})
    assert sorted(hub.fetched) == ["config.json", "model.fp16.safetensors", "vocab.json"]
    hub.fetched.clear()
    _, params = read("owner/gpt1", cache_dir=cache)
    assert identical(params, {"transformer": checkpoint(BASE).params})
    assert hub.fetched == ["model.safetensors"]
    with pytest.raises(
        FileNotFoundError, match=r"has none such as model\.bf16\.safetensors on the hub"
    ):
        read("owner/gpt1", cache_dir=cache, variant="bf16")
