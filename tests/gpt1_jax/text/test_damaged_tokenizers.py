"""Files of a tokenizer that are damaged at random: loaded and saved alike, or refused."""

import json
import random
import shutil
from pathlib import Path

import pytest
from support.mutations import mutate_bytes, mutate_json, read_or_refuse
from support.small_tokenizer import SIZE, write_small

from gpt1_jax.text.tokenizer import Tokenizer

TEXT = "The press is _start_ in <pad> xyz this thing! <unk> 12 é \n pres"
DAMAGES = 100  # of each kind of folder; some thousands were tried by hand, against transformers too


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """The same tokenizer in the files of different versions."""
    old = write_small(tmp_path / "old")
    tokenizer = Tokenizer.from_pretrained(old)
    tokenizer.add_special_tokens({"pad_token": "<pad>", "extra_special_tokens": ["_start_"]})
    tokenizer.add_tokens(["xyz"])
    tokenizer.save_pretrained(tmp_path / "new")
    half = shutil.copytree(tmp_path / "new", tmp_path / "half")
    (half / "tokenizer.json").unlink()
    pad = {"content": "<pad>", "lstrip": False, "single_word": False}
    (old / "special_tokens_map.json").write_text(json.dumps({"pad_token": pad}))
    (old / "added_tokens.json").write_text(json.dumps({"<pad>": SIZE, "xyz": SIZE + 1}))
    template = shutil.copytree(half, tmp_path / "before")
    settings = json.loads((half / "tokenizer_config.json").read_text())
    settings |= {"bos_token": "_start_", "add_bos_token": True, "add_eos_token": True}
    settings |= {"eos_token": "<pad>"}
    (template / "tokenizer_config.json").write_text(json.dumps(settings))
    Tokenizer.from_pretrained(template).save_pretrained(tmp_path / "template")
    return {
        "old": old,
        "new": tmp_path / "new",
        "half": half,
        "template": tmp_path / "template",
    }


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["old", "new", "half", "template"])
def test_from_pretrained_loads_damaged_files_or_refuses_them(
    folders: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    names = sorted(path.name for path in folders[kind].iterdir())
    damaged, saved, loaded = tmp_path / "damaged", tmp_path / "saved", 0

    def read() -> list[int]:
        tokenizer = Tokenizer.from_pretrained(damaged)
        tokenizer.save_pretrained(saved)
        return tokenizer.encode(TEXT)

    for seed in range(DAMAGES):
        rng = random.Random(f"{kind} {seed}")
        shutil.rmtree(damaged, ignore_errors=True)
        shutil.copytree(folders[kind], damaged)
        file = damaged / rng.choice(names)
        is_json = file.suffix == ".json" and rng.random() < 0.8
        file.write_bytes((mutate_json if is_json else mutate_bytes)(rng, file.read_bytes()))
        ids = read_or_refuse(read)
        if ids is not None:
            loaded += 1
            assert Tokenizer.from_pretrained(saved).encode(TEXT) == ids, f"{seed}: {file.name}"
    assert 0 < loaded < DAMAGES
