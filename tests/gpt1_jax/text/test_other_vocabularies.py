"""Vocabularies that are not GPT-1's: BERT's, whole words, any tokenizer.json."""

import json
from pathlib import Path

import pytest
import tokenizers
from support.small_tokenizer import write_small
from tokenizers import decoders, models, pre_tokenizers, trainers

from gpt1_jax.text.tokenizer import Tokenizer
from gpt1_jax.text.tokenizer_files import has_tokenizer

TEXTS = ["你好、世界 hello", "Café HELLO helloing", "unknown 鱻 [SEP] x", "", "the  cat"]
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[speaker1]", *"你好世界、"]
BERT += ["hello", "##ing", "cafe", "Café", "HELLO"]
WORDS = ["<unk>", "the", "cat", "hello"]


def write_bert(folder: Path, **settings: object) -> Path:
    (folder / "vocab.txt").write_text("\n".join(BERT) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def write_bytes_bpe(folder: Path) -> tokenizers.Tokenizer:
    """A byte-level tokenizer.json, as GPT-2's."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|end|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


def reloaded(tokenizer: Tokenizer, folder: Path) -> Tokenizer:
    tokenizer.save_pretrained(folder)
    return Tokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    "settings",
    [{}, {"do_lower_case": False}, {"tokenize_chinese_chars": False, "strip_accents": False}],
)
def test_bert_vocabulary_equals_transformers(tmp_path: Path, settings: dict[str, bool]) -> None:
    transformers = pytest.importorskip("transformers")
    ours = Tokenizer.from_pretrained(write_bert(tmp_path, **settings))
    theirs = transformers.BertTokenizer.from_pretrained(tmp_path)
    again = reloaded(ours, tmp_path / "saved")
    theirs_of_saved = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    for text in TEXTS:
        ids = theirs.encode(text)
        assert ours.encode(text) == again.encode(text) == theirs_of_saved.encode(text) == ids
        assert ours.decode(ids) == again.decode(ids) == theirs.decode(ids)
    assert ours("你", "好", return_token_type_ids=True)["token_type_ids"] == [0, 0, 0, 1, 1]
    assert again.special_tokens_map == ours.special_tokens_map
    assert ours.pad_token_id == theirs.pad_token_id == 0
    assert ours.mask_token is None  # which the file lacks: no id that a model does not have
    assert len(ours) == len(BERT)


def test_any_tokenizer_json_is_read_as_it_is(tmp_path: Path) -> None:
    theirs = write_bytes_bpe(tmp_path)
    ours = Tokenizer.from_pretrained(tmp_path)
    ours.eos_token = "<|end|>"
    again = reloaded(ours, tmp_path / "saved")
    for text in [*TEXTS, "a<|end|>"]:
        ids = theirs.encode(text).ids
        assert ours.encode(text) == again.encode(text) == ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False)
    assert again.eos_token_id == ours.eos_token_id == 0
    assert not (tmp_path / "saved" / "merges.txt").exists()


@pytest.mark.parametrize("content", [WORDS, dict(zip(WORDS, range(4), strict=True))])
def test_whole_words_without_merges(tmp_path: Path, content: object) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps(content))
    tokenizer = Tokenizer.from_pretrained(tmp_path)
    for each in (tokenizer, reloaded(tokenizer, tmp_path / "saved")):
        assert each.encode("the  cat Café\nhello") == [1, 2, 0, 3]
        assert each(["the", "cat"], is_split_into_words=True)["input_ids"] == [1, 2]
        assert each.decode([1, 2, 0]) == "the cat <unk>"
    (tmp_path / "merges.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"merges\.txt is empty, but must contain the merges"):
        Tokenizer.from_pretrained(tmp_path)


def test_original_pipeline_refuses_other_vocabularies(tmp_path: Path) -> None:
    pytest.importorskip("spacy")
    write_bytes_bpe(tmp_path)
    with pytest.raises(ValueError, match="'original' needs GPT-1's vocabulary"):
        Tokenizer.from_pretrained(tmp_path, pipeline="original")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("normalizer", "lowercase"), False, "normalizer's lowercase is False"),
        (("model", "end_of_word_suffix"), None, "end_of_word_suffix is None"),
        (("pre_tokenizer",), {"type": "WhitespaceSplit"}, "pre_tokenizer is 'WhitespaceSplit'"),
    ],
)
def test_changed_gpt1_pipeline_is_not_taken_for_another_vocabulary(
    tmp_path: Path, place: tuple[str, ...], value: object, message: str
) -> None:
    reloaded(Tokenizer.from_pretrained(write_small(tmp_path / "small")), tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    holder = content
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = value
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"is not GPT-1's: {message}.*would take it as it is"):
        Tokenizer.from_pretrained(tmp_path)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ours = reloaded(Tokenizer.from_pretrained(tmp_path), tmp_path / "saved")
    assert ours.encode("The press, the thing") == theirs.encode("The press, the thing").ids


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.txt", b"[UNK]\na\na\n", r"contains the token 'a' more than once"),
        ("vocab.txt", b"a\n", r"has no unknown token '\[UNK\]'"),
        ("vocab.txt", b"\xff", "byte 1 is not UTF-8"),
        ("vocab.json", b'["a"]', "has no unknown token '<unk>'"),
        ("vocab.json", b"3", "must contain tokens"),
        ("vocab.json", b'{"<unk>": 1}', "no token has the id 0"),
    ],
)
def test_from_pretrained_refuses_damaged_vocabularies(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        Tokenizer.from_pretrained(tmp_path)


def test_has_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert not has_tokenizer(tmp_path)
    for name in ("tokenizer.json", "vocab.txt", "vocab.json", "encoder_bpe_40000.json"):
        (tmp_path / name).touch()
        assert has_tokenizer(tmp_path)
        (tmp_path / name).unlink()
