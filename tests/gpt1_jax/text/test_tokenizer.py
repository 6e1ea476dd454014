"""The tokenizer by itself, on a small vocabulary made here; no torch, no transformers."""

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.killed_writes import killed_writes
from support.small_tokenizer import MERGES, SIZE, small_vocab, write_small
from tokenizers import AddedToken

import conversion
from gpt1_jax.text.tokenizer import BatchEncoding, Tokenizer


def settings_of(folder: Path, **fields: object) -> Path:
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_small(tmp_path / "small")


@pytest.fixture
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """One that no test changes."""
    return Tokenizer.from_pretrained(write_small(tmp_path_factory.mktemp("shared")))


def test_tokenize_applies_merges(shared: Tokenizer):
    assert shared.tokenize("The thing is PRESSÉD.") == [
        *("the</w>", "th", "ing</w>", "is</w>", "pres", "s", "e", "d</w>", ".</w>")
    ]


def test_tokenizer_reproduces_published_ids(data_folder: Path):
    tokenizer = Tokenizer.from_pretrained(data_folder / "gpt1_bpe")
    assert tokenizer.encode("the president is") == [481, 4735, 544]
    assert tokenizer.decode([481, 4735, 544]) == "the president is"
    assert len(tokenizer) == tokenizer.vocab_size == 40478
    assert tokenizer.convert_ids_to_tokens(40477) == "\n</w>"
    assert tokenizer.get_vocab() == json.loads(
        (data_folder / "gpt1_bpe" / "vocab.json").read_bytes()
    )


@pytest.mark.parametrize(
    ("text", "same_as"),
    [
        ("  The\tcat\r\n", "the cat"),
        ("crème brûlée", "creme brulee"),
        ("don't", "don ' t"),
        ("a\x00b\u200bc", "abc"),
        ("", ""),
        ("\n \n", ""),
    ],
)
def test_encode_normalizes_text(shared: Tokenizer, text: str, same_as: str):
    assert shared.encode(text) == shared.encode(same_as)
    assert shared.decode(shared.encode(text)) == same_as


@pytest.mark.parametrize("text", ["中", "“", "—", "🙂", "é中"])
def test_encode_maps_unknown_characters_to_unk(shared: Tokenizer, text: str):
    assert shared.encode(text)[-1] == shared.unk_token_id == 0


@given(st.lists(st.sampled_from([*"abc.,!?'", "the", "thing", "is"]), max_size=8))
@settings(max_examples=100, deadline=None)
def test_encode_then_decode_returns_the_text(shared: Tokenizer, words: list[str]):
    text = " ".join(words)
    assert shared.decode(shared.encode(text)) == text


@given(st.text(max_size=40))
@settings(max_examples=200, deadline=None)
def test_encode_accepts_any_text(shared: Tokenizer, text: str):
    ids = shared.encode(text)
    assert shared.convert_tokens_to_ids(shared.tokenize(text)) == ids
    assert shared([text, "the"]).input_ids[0] == ids
    if 0 not in ids:  # an unknown character in a word is decoded as "<unk>" without spaces
        assert shared.encode(shared.decode(ids)) == ids


@given(st.text())
def test_repeated_encode_and_decode_converges(shared: Tokenizer, text: str):
    once = shared.encode(shared.decode(shared.encode(text)))
    assert shared.encode(shared.decode(once)) == once


def test_encode_pieces_matches_encode(shared: Tokenizer):
    pieces = ["the thing ", "is\nthe\n", "\n", "", "thing"]
    rows = list(shared.encode_pieces(iter(pieces)))
    assert len(rows) == len(pieces)
    assert [id_ for row in rows for id_ in row] == shared.encode("".join(pieces))
    wrong: Any = ["the ", 3]
    with pytest.raises(TypeError, match="text 1 must be a string, not int"):
        list(shared.encode_pieces(wrong))


def test_offset_mapping_follows_padding_and_truncation(shared: Tokenizer):
    text = "The thing"
    arguments: dict[str, Any] = {"padding": "max_length", "max_length": 4, "truncation": True}
    encoding = shared(text, return_offsets_mapping=True, **arguments)
    assert [text[slice(*span)] for span in encoding["offset_mapping"]] == ["The", "th", "ing", ""]
    arguments["max_length"] = 1
    assert shared(text, return_offsets_mapping=True, **arguments)["offset_mapping"] == [(0, 3)]


def test_decode_accepts_any_integer_type(shared: Tokenizer):
    ids = shared.encode("the thing is .")
    for same in (tuple(ids), np.array(ids), np.array(ids, np.uint8), jnp.array(ids)):
        assert shared.decode(same) == "the thing is ."
        assert shared.convert_ids_to_tokens(same) == shared.tokenize("the thing is .")
    assert shared.decode(ids[0]) == shared.decode(np.int32(ids[0])) == "the"
    assert shared.decode([]) == shared.decode(np.array([], np.int32)) == ""
    assert shared.decode([0, ids[0]], skip_special_tokens=True) == "the"


def test_decode_warns_of_a_clean_up_that_has_no_effect(shared: Tokenizer):
    ids = shared.encode("the , is")
    assert shared.decode(ids, True, clean_up_tokenization_spaces=False) == "the , is"
    with pytest.warns(UserWarning, match="no effect on byte-pair tokens: detokenize closes"):
        assert shared.decode(ids, clean_up_tokenization_spaces=True) == "the , is"
    with pytest.warns(UserWarning, match="no effect on byte-pair tokens: detokenize closes"):
        assert shared.batch_decode([ids], clean_up_tokenization_spaces=True) == ["the , is"]


def test_batch_decode_accepts_arrays_and_lists(shared: Tokenizer):
    batch = shared(["the thing", "is"], padding=True, return_tensors="np")
    for ids in (batch.input_ids, jnp.array(batch.input_ids), batch.input_ids.tolist()):
        assert shared.batch_decode(ids, skip_special_tokens=True) == ["the thing", "is"]
    assert shared.batch_decode(shared(["the thing", "is"]).input_ids) == ["the thing", "is"]
    assert shared.batch_decode(shared.encode("the thing")) == ["the thing"]
    assert shared.batch_decode([]) == []


@pytest.mark.difference("decoding of several texts")
@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (-1, "id -1 is out of range: an id must be at least 0"),
        ([3, -2, 999], "id -2 is out of range"),
        ([2**70], "dtype object"),
        ([1.0], "dtype float64"),
        ([True], "dtype bool"),
        ("the", "dtype <U3"),
        ([[1, 2]], r"shape \(1, 2\).*batch_decode"),
        ([[1, 2], [3]], "inhomogeneous"),
    ],
)
def test_decode_rejects_bad_ids(shared: Tokenizer, ids: Any, message: str):
    with pytest.raises(ValueError, match=message):
        shared.decode(ids)
    with pytest.raises(ValueError, match=message):
        shared.convert_ids_to_tokens(ids)


@pytest.mark.parametrize("text", [None, 3, b"the", ["the"], np.array("the")])
def test_encode_rejects_non_strings(shared: Tokenizer, text: object):
    with pytest.raises(TypeError, match=f"the text must be a string, not {type(text).__name__}"):
        shared.encode(text)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("texts", [None, 3, {"a"}])
def test_tokenizer_call_rejects_non_strings(shared: Tokenizer, texts: object):
    with pytest.raises(TypeError, match="must be a string or a list of strings"):
        shared(texts)  # pyright: ignore[reportArgumentType]


def test_tokenizer_errors_name_the_text(shared: Tokenizer):
    with pytest.raises(TypeError, match="text 1 must be a string, not int"):
        shared(["a", 3])  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="text 1 holds a lone surrogate"):
        shared(["a", "\ud800"])
    with pytest.raises(ValueError, match="the text holds a lone surrogate"):
        shared.encode("\ud800")


def test_tokenizer_call_returns_lists_by_default(shared: Tokenizer):
    one, two = shared.encode("the thing is"), shared.encode("is")
    assert shared("is") == {"input_ids": two, "attention_mask": [1]}
    assert shared(["is"]) == {"input_ids": [two], "attention_mask": [[1]]}
    assert shared(("the thing is", "is")).input_ids == [one, two]
    assert shared(["", "is"], padding=True).attention_mask == [[0], [1]]


@pytest.mark.difference("padding without a pad token")
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_fills_ids_and_attention_mask(shared: Tokenizer, side: str):
    texts = ["the thing is", "is"]
    batch = shared(texts, padding=True, padding_side=side, return_tensors="np")  # pyright: ignore
    assert batch.input_ids.dtype == batch.attention_mask.dtype == np.int32
    assert batch.input_ids.shape == (2, 4)
    pads = [0, 0, 0]
    ids, mask = shared.encode("is"), [1]
    row = pads + ids if side == "left" else ids + pads
    assert batch["input_ids"][1].tolist() == row
    assert batch["attention_mask"][1].tolist() == (pads + mask if side == "left" else mask + pads)
    assert batch["attention_mask"][0].tolist() == [1] * 4


def test_padding_uses_tokenizer_settings(tokenizer: Tokenizer):
    assert tokenizer.add_special_tokens({"pad_token": "<pad>"}) == 1
    tokenizer.padding_side = "left"
    padded = tokenizer(["the thing", "is"], padding="longest")
    assert padded.input_ids[1] == [tokenizer.pad_token_id] * 2 + tokenizer.encode("is")


def test_max_length_limits_padding_and_truncation(tokenizer: Tokenizer):
    ids = tokenizer.encode("the thing is")
    assert tokenizer("the thing is", max_length=2).input_ids == ids[:2]
    assert tokenizer("the thing is", max_length=2, truncation=False).input_ids == ids
    assert tokenizer("the thing is", max_length=9, truncation=True).input_ids == ids
    padded = tokenizer(["the thing is", ""], padding="max_length", max_length=6)
    assert padded.input_ids == [[*ids, 0, 0], [0] * 6]
    assert padded.attention_mask == [[1, 1, 1, 1, 0, 0], [0] * 6]
    both = tokenizer(
        ["the thing is", "is"], padding=True, truncation=True, max_length=2, return_tensors="np"
    )
    assert both.input_ids.tolist() == [ids[:2], [ids[-1], 0]]
    tokenizer.truncation_side = "left"
    assert tokenizer("the thing is", max_length=2).input_ids == ids[-2:]
    tokenizer.model_max_length = 3
    assert tokenizer("the thing is", truncation=True).input_ids == ids[-3:]
    assert tokenizer("is", padding="max_length").attention_mask == [1, 0, 0]
    with pytest.warns(UserWarning, match="max_length = 2 is not used"):
        assert len(tokenizer("the thing is", padding=True, max_length=2).input_ids) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"return_tensors": "np"}, "differ in length.*padding=True"),
        ({"return_tensors": "np", "padding": "max_length", "max_length": 2}, "truncation=True"),
        ({"return_tensors": "pt"}, "return_tensors is 'pt'"),
        ({"padding": "widest"}, "padding is 'widest'"),
        ({"padding": True, "padding_side": "top"}, "padding_side is 'top'"),
        ({"padding": "max_length"}, "padding='max_length' needs max_length"),
        ({"truncation": True}, "truncation=True needs max_length"),
        ({"max_length": 0}, "max_length is 0"),
        ({"max_length": 2.5}, "max_length is 2.5"),
    ],
)
def test_tokenizer_call_rejects_bad_arguments(shared: Tokenizer, arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        shared(["the thing is", "is"], **arguments)


def test_tokenizer_call_rejects_empty_list(shared: Tokenizer):
    with pytest.raises(ValueError, match="no texts"):
        shared([])


def test_batch_encoding_is_a_pytree(shared: Tokenizer):
    batch = shared(["the", "is"], return_tensors="np")
    moved = jax.tree.map(jnp.asarray, batch)
    assert isinstance(moved, BatchEncoding)
    assert list(moved) == ["attention_mask", "input_ids"]
    total = jax.jit(lambda b: (b.input_ids * b["attention_mask"]).sum())(batch)
    assert total == batch.input_ids.sum()
    path = jax.tree_util.tree_leaves_with_path(batch)[0][0]
    assert jax.tree_util.keystr(path) == "['attention_mask']"
    assert dict(**batch) == batch


def test_add_special_tokens_extends_vocabulary(tokenizer: Tokenizer):
    size = tokenizer.vocab_size
    assert tokenizer.all_special_ids == [0]
    assert tokenizer.pad_token is tokenizer.pad_token_id is tokenizer.eos_token is None
    added = tokenizer.add_special_tokens(
        {"pad_token": "<PAD>", "cls_token": "<unk>", "additional_special_tokens": ["_start_"]}
    )
    assert added == 2
    assert (len(tokenizer), tokenizer.vocab_size) == (size + 2, size)
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<PAD>", size)
    assert (tokenizer.cls_token, tokenizer.cls_token_id) == ("<unk>", 0)
    assert tokenizer.extra_special_tokens == ["_start_"]
    assert tokenizer.all_special_tokens == ["<unk>", "<PAD>", "_start_"]
    assert tokenizer.get_vocab()["_start_"] == size + 1
    the = tokenizer.encode("the")
    # A special token is found as written, and not in another case.
    ids = tokenizer.encode("the_start_<PAD> the<pad>")
    assert ids[:4] == [*the, size + 1, size, *the]
    assert ids.count(size) == 1
    assert tokenizer.decode(ids[:4], skip_special_tokens=True) == "the the"
    assert tokenizer.convert_ids_to_tokens(ids[:3], skip_special_tokens=True) == ["the</w>"]
    assert tokenizer.add_special_tokens({"pad_token": "<PAD>"}) == 0
    assert tokenizer.add_special_tokens({}) == 0


def test_add_tokens_extends_vocabulary(tokenizer: Tokenizer):
    size = len(tokenizer)
    assert tokenizer.add_tokens(["New York", "the", "New York"]) == 2
    assert tokenizer.add_tokens("New York") == 0
    # It is lower-cased, as the text is.
    assert tokenizer.encode("is NEW york is")[1] == size
    assert tokenizer.decode([size], skip_special_tokens=True) == "new york"
    assert tokenizer.add_tokens([AddedToken("CASE", normalized=False, single_word=True)]) == 1
    assert size + 2 in tokenizer.encode("the CASE is")
    assert size + 2 not in tokenizer.encode("the case is CASEd")
    assert tokenizer.add_tokens(["<s>"], special_tokens=True) == 1
    assert tokenizer.decode([size + 3, size + 1], skip_special_tokens=True) == "the"


def test_special_token_setters_update_ids(tokenizer: Tokenizer):
    tokenizer.eos_token = ".</w>"
    assert tokenizer.eos_token_id == tokenizer.encode(".")[0]
    tokenizer.pad_token = tokenizer.eos_token
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    tokenizer.pad_token = None
    assert tokenizer.pad_token_id is None
    with pytest.raises(ValueError, match=r"'<pad>', which is not in the vocabulary"):
        tokenizer.pad_token = "<pad>"
    with pytest.raises(AttributeError, match="pad_token_id follows pad_token"):
        tokenizer.pad_token_id = 0
    for change in ("the</w>", None):
        with pytest.raises(ValueError, match="unk_token cannot become"):
            tokenizer.unk_token = change


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ({"padding_token": "<pad>"}, "'padding_token' names no special token.*pad_token"),
        ({"pad_token": 3}, "3 is not a token"),
        ({"pad_token": "<pad>", "eos_token": ""}, "'' is not a token"),
        ({"extra_special_tokens": "<a>"}, "must be a list"),
        ({"extra_special_tokens": [None]}, "None is not a token"),
        ({"unk_token": "<other>"}, "unk_token cannot become"),
    ],
)
def test_add_special_tokens_rejects_bad_tokens_unchanged(
    tokenizer: Tokenizer, tokens: dict, message: str
):
    before = len(tokenizer), tokenizer.special_tokens_map
    with pytest.raises(ValueError, match=message):
        tokenizer.add_special_tokens(tokens)
    assert (len(tokenizer), tokenizer.special_tokens_map) == before
    with pytest.raises(ValueError, match="not a token"):
        tokenizer.add_tokens(["fine", ""])
    assert len(tokenizer) == before[0]


def test_tokenizer_converts_between_tokens_and_ids(shared: Tokenizer):
    assert shared.convert_tokens_to_ids("the</w>") == shared.encode("the")[0]
    assert shared.convert_tokens_to_ids(["nothing", "<unk>"]) == [0, 0]
    assert shared.convert_ids_to_tokens(0) == "<unk>"
    assert shared.get_vocab() == small_vocab()
    assert bool(shared)
    assert repr(shared) == (
        f"Tokenizer({SIZE} tokens, pipeline='huggingface', padding_side='right', unk_token='<unk>')"
    )


def test_tokenizer_can_be_pickled(tokenizer: Tokenizer):
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.encode("the <pad>") == tokenizer.encode("the <pad>")
    assert copy.pad_token_id == tokenizer.pad_token_id


@pytest.mark.smoke
@pytest.mark.parametrize("kept", ["tokenizer.json", "vocab.json"])
def test_save_pretrained_then_load_keeps_everything(
    tokenizer: Tokenizer, tmp_path: Path, kept: str
):
    tokenizer.add_special_tokens({"pad_token": "<pad>", "extra_special_tokens": ["_Start_"]})
    tokenizer.add_tokens(["New York", AddedToken("CASE", normalized=False, lstrip=True)])
    tokenizer.padding_side = "left"
    tokenizer.model_max_length = 16
    saved = tmp_path / "new" / "folder"
    tokenizer.save_pretrained(saved)
    names = {"tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"}
    assert {path.name for path in saved.iterdir()} == names
    for name in {"tokenizer.json", "vocab.json"} - {kept}:
        (saved / name).unlink()
    loaded = Tokenizer.from_pretrained(str(saved))
    text = "the <pad> _Start_ _start_ new york CASE case <unk> é"
    assert loaded.encode(text) == tokenizer.encode(text)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.special_tokens_map == {"unk_token": "<unk>", "pad_token": "<pad>"}
    assert loaded.extra_special_tokens == ["_Start_"]
    assert (loaded.padding_side, loaded.model_max_length) == ("left", 16)
    assert Tokenizer.from_pretrained(saved, padding_side="right").padding_side == "right"


def test_save_pretrained_replaces_older_files(tokenizer: Tokenizer, folder: Path):
    (folder / "added_tokens.json").write_text(json.dumps({"<old>": SIZE}))
    (folder / "special_tokens_map.json").write_text('{"pad_token": "<old>"}')
    assert Tokenizer.from_pretrained(folder).pad_token_id == SIZE
    tokenizer.save_pretrained(folder)
    loaded = Tokenizer.from_pretrained(folder)
    assert (len(loaded), loaded.pad_token) == (SIZE, None)


def test_save_pretrained_is_atomic(
    tokenizer: Tokenizer, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    write = Path.write_text

    def fails(path: Path, *args, **kwargs):
        if "tokenizer_config" in path.name:
            raise OSError(28, "No space left on device")
        return write(path, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", fails)
    with pytest.raises(OSError, match="No space left"):
        tokenizer.save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_tokenizer_is_old_or_new_after_a_kill_at_any_change(
    tokenizer: Tokenizer, folder: Path, tmp_path: Path
):
    tokenizer.save_pretrained(folder)
    before = tokenizer.get_vocab()
    tokenizer.add_tokens(["New York"])
    tokenizer.save_pretrained(tmp_path / "new")
    (tmp_path / "writer.py").write_text(
        "from gpt1_jax.text.tokenizer import Tokenizer\n"
        f"write = Tokenizer.from_pretrained({str(tmp_path / 'new')!r}).save_pretrained\n"
    )
    copies = killed_writes(tmp_path / "writer.py", "write", folder, tmp_path / "killed")
    found = [Tokenizer.from_pretrained(copy).get_vocab() for copy in copies]
    is_new = [vocab == tokenizer.get_vocab() for vocab in found]
    assert is_new == sorted(is_new)
    assert all(vocab == before for vocab, new in zip(found, is_new, strict=True) if not new)
    assert is_new.count(True) > 4  # in the midst of the four files' renames


def test_from_pretrained_reads_openai_files(tmp_path: Path):
    folder = write_small(tmp_path / "openai", ("encoder_bpe_40000.json", "vocab_40000.bpe"))
    merges = folder / "vocab_40000.bpe"
    merges.write_bytes(merges.read_bytes().replace(b"\n", b"\r\n"))
    assert Tokenizer.from_pretrained(folder).tokenize("The") == ["the</w>"]
    merges.write_text("\n".join(MERGES))  # neither header nor last line end
    assert Tokenizer.from_pretrained(folder).tokenize("press") == ["pres", "s</w>"]


def test_from_pretrained_resolves_hub_ids(folder: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def resolve(name, **arguments):
        asked.append((name, arguments))
        return folder

    monkeypatch.setattr(conversion, "resolve", resolve)
    Tokenizer.from_pretrained("someone/gpt1", revision="main", local_files_only=True)
    expected = {"weights": False, "variant": None, "revision": "main", "local_files_only": True}
    assert asked == [("someone/gpt1", expected)]


def test_from_pretrained_reports_missing_files(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Tokenizer.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError) as error:
        Tokenizer.from_pretrained(tmp_path)
    for name in (str(tmp_path), "tokenizer.json", "vocab.json", "merges.txt", "vocab_40000.bpe"):
        assert name in str(error.value)
    (write_small(tmp_path / "half") / "merges.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"half has vocab\.json, but not merges\.txt"):
        Tokenizer.from_pretrained(tmp_path / "half")


def changed(**tokens: object) -> str:
    return json.dumps({**small_vocab(), **tokens})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.json", "{", r"vocab.json is not JSON \(.*character 2\)"),
        ("vocab.json", '{"a": 0, "a": 1}', "vocab.json has the key 'a' more than once"),
        ("vocab.json", "[1]", "Bad vocabulary json file"),
        ("vocab.json", "{}", "Token `t` out of vocabulary"),
        ("vocab.json", changed(z=2), "no token has the id 26"),  # 2 is b
        ("vocab.json", changed(new=200), f"no token has the id {SIZE}.*0 to {SIZE}"),
        ("vocab.json", changed(z="26"), "no token has the id 26"),
        ("vocab.json", b'{"\xff\xfe', "byte 3 is not UTF-8"),
        ("vocab.json", changed().replace("<unk>", "<UNK>"), "has no unknown token '<unk>'"),
        ("merges.txt", "t h\nt h e", "merges.txt are broken: .* invalid at line 2"),
        ("merges.txt", "t h\n\nt i", "invalid at line 2"),
        ("merges.txt", "#version: 0.2\nt h\nt i", "Token `ti` out of vocabulary"),
        ("merges.txt", "é h", "Token `é` out of vocabulary"),
        ("tokenizer_config.json", "{", "tokenizer_config.json is not JSON"),
        (
            "tokenizer_config.json",
            '{"pad_token": "a", "pad_token": "b"}',
            "has the key 'pad_token' more than once",
        ),
        ("tokenizer_config.json", '{"padding_side": "top"}', "padding_side is 'top'"),
        ("tokenizer_config.json", '{"pad_token": {"lstrip": 1}}', "is not a token"),
        ("tokenizer_config.json", '{"unk_token": "<?>"}', "has no unknown token '<\\?>'"),
        ("tokenizer_config.json", '{"unk_token": null}', "has no unknown token None"),
        (
            "tokenizer_config.json",
            '{"added_tokens_decoder": {"200": {"content": "<a>"}}}',
            f"'<a>' should have the id 200, .* make that {SIZE}",
        ),
        (
            "tokenizer_config.json",
            '{"added_tokens_decoder": {"x": {"content": "<a>"}}}',
            "has the id 'x'",
        ),
        ("tokenizer_config.json", '{"extra_special_tokens": "<a>"}', "must be a list"),
        ("tokenizer_config.json", '{"extra_special_tokens": [1]}', "1 is not a token"),
        ("tokenizer_config.json", '{"pad_token": 1}', "1 is not a token; it must be a text"),
        ("tokenizer_config.json", '{"model_max_length": "9"}', "model_max_length is '9', but must"),
        ("tokenizer_config.json", '{"model_max_length": true}', "model_max_length is True, but"),
        (
            "tokenizer_config.json",
            f'{{"added_tokens_decoder": {{"{10**30}": {{"content": "<a>"}}}}}}',
            f"has the id '{10**30}', which must be a number from 0 on",
        ),
        ("tokenizer_config.json", '{"added_tokens_decoder": []}', "must be an object"),
        ("added_tokens.json", '{"<a>": 300}', "'<a>' should have the id 300"),
    ],
)
def test_from_pretrained_reports_broken_files(
    folder: Path, name: str, content: str | bytes, message: str
):
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as error:
        Tokenizer.from_pretrained(folder)
    assert str(folder) in str(error.value)


WORD_PIECE = {
    "type": "WordPiece",
    "vocab": {"<unk>": 0},
    "unk_token": "<unk>",
    "continuing_subword_prefix": "##",
    "max_input_chars_per_word": 100,
}
# Puts a token before every text, with an id that is another token's.
STARTS = {
    "type": "TemplateProcessing",
    "single": [
        {"SpecialToken": {"id": "<unk>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"<unk>": {"id": "<unk>", "ids": [1], "tokens": ["<unk>"]}},
}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("model", "end_of_word_suffix"), "", "end_of_word_suffix is '', but must be '</w>'"),
        # The library would panic.
        (
            ("model", "continuing_subword_prefix"),
            "##########",
            "is not GPT-1's: continuing_subword_prefix is '##########', but must be ''",
        ),
        (("model", "merges"), [], "no merge that makes the token 'th'; .*without a merge: 8"),
        (("model", "vocab", "z"), 2, "no token has the id 26"),
        (("model", "merges"), [["t", "h"], ["t", "i"]], "Token `ti` out of vocabulary"),
        (("model", "merges"), [["t", 3]], "is not a tokenizer's"),
        (("model", "merges"), None, "is not a tokenizer's"),
        (("model",), None, "is not a tokenizer's"),
        (("model",), WORD_PIECE, "model is 'WordPiece', but must be 'BPE'"),
        (("normalizer",), None, "normalizer is 'NoneType', but must be 'BertNormalizer'"),
        (("normalizer", "lowercase"), False, "lowercase is False, but must be True"),
        (("pre_tokenizer",), {"type": "Whitespace"}, "pre_tokenizer is 'Whitespace'"),
        (("padding",), "left", "is not a tokenizer's"),
        (("post_processor",), {"type": "Nothing"}, "is not a tokenizer's"),
        (
            ("post_processor",),
            STARTS,
            "the post_processor adds the token '<unk>' with the id 1, but in the vocabulary its id "
            "is 0",
        ),
    ],
)
def test_from_pretrained_rejects_other_tokenizer_json(
    tokenizer: Tokenizer, tmp_path: Path, path: tuple[str, ...], value: object, message: str
):
    tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    content = part = json.loads(file.read_text())
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as error:
        Tokenizer.from_pretrained(tmp_path)
    assert str(file) in str(error.value)


@pytest.mark.parametrize("name", ["single_word", "lstrip", "rstrip", "normalized", "special"])
@pytest.mark.parametrize("value", ["yes", 1, 0, None, []])
def test_from_pretrained_rejects_flags_that_are_not_booleans(
    folder: Path, name: str, value: object
):
    token = {"content": "<a>", name: value}
    message = f"{name} of the token '<a>' is {value!r}, but must be true or false"
    for fields in (
        {"pad_token": token},
        {"extra_special_tokens": [token]},
        {"added_tokens_decoder": {SIZE: token}},
    ):
        with pytest.raises(ValueError, match=re.escape(f"{folder}: {message}")):
            Tokenizer.from_pretrained(settings_of(folder, **fields))


@pytest.mark.parametrize(
    ("kept", "first", "number"),
    [(0, "th", 8), (1, "the</w>", 7), (7, "pres", 1)],  # of 8 merges
)
@pytest.mark.parametrize("start", ["", "#version: 0.2\n"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_from_pretrained_rejects_merges_that_are_cut_short(
    folder: Path, kept: int, first: str, number: int, start: str, end: str
):
    lines = "".join(merge + end for merge in MERGES[:kept])
    (folder / "merges.txt").write_bytes((start + lines).encode())
    with pytest.raises(ValueError, match="has no merge") as error:
        Tokenizer.from_pretrained(folder)
    assert str(error.value) == (
        f"{folder / 'merges.txt'} has no merge that makes the token {first!r}; tokens of the "
        f"vocabulary without a merge: {number}. Every token of more than one symbol needs one, "
        f"unless it is an added token"
    )


def test_from_pretrained_needs_no_merges_of_added_tokens(folder: Path):
    tokens = ["<pad>", "[CLS]", "_start_", "named", "listed", "added"]
    vocab = changed(**{token: SIZE + index for index, token in enumerate(tokens)})
    (folder / "vocab.json").write_text(vocab)
    with pytest.raises(ValueError, match=r"makes the token 'named'; .*without a merge: 3"):
        Tokenizer.from_pretrained(folder)
    settings = {"extra_special_tokens": ["named"]}
    decoder = {str(SIZE + index): {"content": tokens[index]} for index in (4, 5)}
    tokenizer = Tokenizer.from_pretrained(
        settings_of(folder, **settings, added_tokens_decoder=decoder)
    )
    assert tokenizer.convert_tokens_to_ids(tokens) == list(range(SIZE, SIZE + 6))
    settings_of(folder, **settings)
    (folder / "added_tokens.json").write_text(json.dumps({"listed": SIZE + 4, "added": SIZE + 5}))
    assert Tokenizer.from_pretrained(folder).encode("added the") == [
        SIZE + 5,
        *tokenizer.encode("the"),
    ]


def test_from_pretrained_takes_a_token_that_two_merges_make(folder: Path):
    (folder / "merges.txt").write_text("\n".join([*MERGES, "t he</w>", "h e</w>"]))
    (folder / "vocab.json").write_text(changed(**{"he</w>": SIZE}))
    assert len(Tokenizer.from_pretrained(folder)) == SIZE + 1


@pytest.mark.parametrize("field", ["ignore_merges", "byte_fallback", "fuse_unk"])
def test_from_pretrained_sets_the_model_as_transformers_does(
    tokenizer: Tokenizer, tmp_path: Path, field: str
):
    text = "pres inthe é é日"
    tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"][field] = True
    file.write_text(json.dumps(content))
    assert Tokenizer.from_pretrained(tmp_path).encode(text) == tokenizer.encode(text)


def test_from_pretrained_flattens_named_extra_tokens(folder: Path):
    loaded = Tokenizer.from_pretrained(settings_of(folder, extra_special_tokens={"x": "<x>"}))
    assert loaded.extra_special_tokens == ["<x>"]
    assert loaded.all_special_ids == [0, SIZE]


@pytest.mark.parametrize(
    ("length", "known"), [(512, 512), (512.0, 512), (10**30, None), (-1, None), (None, None)]
)
def test_from_pretrained_reads_model_max_length(
    folder: Path, length: float | None, known: int | None
):
    loaded = Tokenizer.from_pretrained(settings_of(folder, model_max_length=length))
    assert loaded.model_max_length == known


def test_tokenizer_import_is_lazy():
    code = (
        "import sys, gpt1_jax.text.tokenizer\n"
        "print([m for m in ('tokenizers', 'transformers', 'torch') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout == "[]\n"
