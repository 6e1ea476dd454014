"""Uploads to the hub through a stub of its HTTP interface: nothing here reaches a network."""

import base64
import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.utils._http import default_client_factory
from support.small_models import small_model

import gpt1_jax as gpt1
from conversion import push_folder
from gpt1_jax.demo import FOLDER as DEMO

httpx2 = pytest.importorskip("httpx2", reason="huggingface_hub's HTTP client")

PAGE = "https://huggingface.co/owner/gpt1"
PULL_REQUEST = {
    "num": 1,
    "title": "Upload trained",
    "status": "draft",
    "createdAt": "2026-01-01T00:00:00.000Z",
    "repo": {"name": "owner/gpt1", "type": "model"},
    "isPullRequest": True,
    "changes": {"base": "refs/heads/main"},
    "filesWithConflicts": [],
    "events": [],
}


class Hub:
    """What the hub is asked for, and the files that it was given."""

    def __init__(self):
        self.asked: list[tuple[str, str]] = []
        self.created: dict[str, Any] = {}
        self.summary = ""
        self.files: dict[str, bytes] = {}
        self.status = 200

    def __call__(self, request: Any) -> Any:
        path = request.url.path
        if path == "/api/agent-harnesses":
            return httpx2.Response(404)
        self.asked.append((request.method, path))
        if self.status != 200:
            return httpx2.Response(self.status, json={"error": "no"}, request=request)
        if path == "/api/repos/create":
            self.created = json.loads(request.content)
            return httpx2.Response(200, json={"url": PAGE})
        if "/discussions" in path:
            return httpx2.Response(200, json=PULL_REQUEST)
        if "/preupload/" in path:
            kind = {"uploadMode": "regular", "shouldIgnore": False}
            files = [{"path": f["path"], **kind} for f in json.loads(request.content)["files"]]
            return httpx2.Response(200, json={"files": files})
        if "/commit/" in path:
            for line in map(json.loads, request.content.splitlines()):
                value = line["value"]
                if line["key"] == "header":
                    self.summary = value["summary"]
                else:
                    self.files[value["path"]] = base64.b64decode(value["content"])
            answer = {"commitOid": "0" * 40, "commitUrl": f"{PAGE}/commit/{'0' * 40}"}
            return httpx2.Response(200, json=answer)
        return httpx2.Response(200, json={"id": "owner/gpt1", "sha": "1" * 40, "siblings": []})


@pytest.fixture
def hub(monkeypatch, tmp_path):
    stub = Hub()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
    monkeypatch.setenv("HF_TOKEN", "hf_written")
    huggingface_hub.set_client_factory(lambda: httpx2.Client(transport=httpx2.MockTransport(stub)))
    yield stub
    huggingface_hub.set_client_factory(default_client_factory)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A trained folder."""
    path = tmp_path / "trained"
    for name in ("config.json", "model.safetensors", "adapter/adapter_config.json", "loss.png"):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(name.encode())
    return path


def test_push_folder_leaves_out_hidden_files_and_what_a_run_needs(hub, folder):
    for name in ("checkpoints/40/state", "tokens/a.bin", "wandb/run", ".gpt1-jax.run.lock"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"left out")
    assert push_folder(folder, "owner/gpt1") == f"{PAGE}/commit/{'0' * 40}"
    names = ("config.json", "model.safetensors", "adapter/adapter_config.json", "loss.png")
    assert hub.files == {name: name.encode() for name in names}
    assert (hub.created["organization"], hub.created["name"]) == ("owner", "gpt1")
    assert "visibility" not in hub.created
    assert hub.summary == "Upload trained"


def test_push_folder_takes_options(hub, folder):
    push_folder(folder, "owner/gpt1", private=True, revision="new", commit_message="Train longer")
    assert hub.created["visibility"] == "private"
    assert hub.summary == "Train longer"
    assert ("POST", "/api/models/owner/gpt1/branch/new") in hub.asked
    assert ("POST", "/api/models/owner/gpt1/commit/new") in hub.asked
    assert push_folder(folder, "owner/gpt1", create_pr=True) == f"{PAGE}/discussions/1"


def test_push_to_hub_uploads_what_save_pretrained_writes(hub, tmp_path):
    model = small_model(gpt1.OpenAIGPTLMHeadModel, n_layer=1)
    tokenizer = gpt1.Tokenizer.from_pretrained(DEMO)
    for each, summary in ((model, "Upload model"), (tokenizer, "Upload tokenizer")):
        each.save_pretrained(tmp_path / summary)
        hub.files.clear()
        each.push_to_hub("owner/gpt1", private=False)
        written = {path.name: path.read_bytes() for path in (tmp_path / summary).iterdir()}
        assert hub.files == written
        assert hub.summary == summary
        assert hub.created["visibility"] == "public"


def test_push_folder_refuses_what_cannot_be_uploaded(hub, folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no checkpoint to push: expected a folder"):
        push_folder(tmp_path, "owner/gpt1")
    with pytest.raises(ValueError, match="leave out revision='new' or create_pr"):
        push_folder(folder, "owner/gpt1", revision="new", create_pr=True)
    with pytest.raises(ValueError, match="'a/b/c' is not an id"):
        push_folder(folder, "a/b/c")
    assert hub.asked == []
    hub.status = 403
    with pytest.raises(OSError, match=r"cannot push .* to 'owner/gpt1': it is not allowed"):
        push_folder(folder, "owner/gpt1")
    hub.status = 500
    with pytest.raises(OSError, match=r"check the connection, and push again"):
        push_folder(folder, "owner/gpt1")
