"""Vocabularies that are not GPT-1's: BERT's, whole words, any tokenizer.json."""

import json
from pathlib import Path

import pytest
import tokenizers
from support.small_tokenizer import SIZE, write_small
from support.vocabularies import write_bert, write_unigram, write_words

from gpt1_jax.text.tokenizer import Tokenizer
from gpt1_jax.text.tokenizer_files import has_tokenizer

TEXTS = ["你好、世界 hello", "Café HELLO helloing", "unknown 鱻 [SEP] x", "", "the  press, the"]


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
    assert len(ours) == SIZE


def test_encode_prompt_leaves_out_what_ends_a_text(tmp_path: Path) -> None:
    bert = Tokenizer.from_pretrained(write_bert(tmp_path))
    cls, sep, hello = bert.convert_tokens_to_ids(["[CLS]", "[SEP]", "hello"])
    assert bert.encode("hello [SEP]") == [cls, hello, sep, sep]
    assert bert.encode_prompt("hello [SEP]") == [cls, hello, sep]
    assert bert.encode_prompt("") == [cls]
    assert len(bert.tokenize("[speaker1]")) > 1
    write_bert(tmp_path, additional_special_tokens=["[speaker1]"])
    listed = Tokenizer.from_pretrained(tmp_path)
    speaker = bert.convert_tokens_to_ids("[speaker1]")
    assert listed.encode_prompt("[speaker1] hello") == [cls, speaker, hello]
    assert len(listed) == len(bert)
    (tmp_path / "vocab.txt").unlink()
    words = Tokenizer.from_pretrained(write_words(tmp_path))
    assert words.encode_prompt("hello") == words.encode("hello") == [3]


def test_any_tokenizer_json_is_read_as_it_is(tmp_path: Path) -> None:
    theirs = write_unigram(tmp_path)
    ours = Tokenizer.from_pretrained(tmp_path)
    ours.eos_token = "</s>"
    again = reloaded(ours, tmp_path / "saved")
    for text in [*TEXTS, "a</s>"]:
        ids = theirs.encode(text).ids
        assert ours.encode(text) == again.encode(text) == ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False)
    assert again.eos_token_id == ours.eos_token_id == 1
    assert not (tmp_path / "saved" / "merges.txt").exists()


@pytest.mark.parametrize("as_list", [True, False])
def test_whole_words_without_merges(tmp_path: Path, as_list: bool) -> None:
    tokenizer = Tokenizer.from_pretrained(write_words(tmp_path, as_list=as_list))
    for each in (tokenizer, reloaded(tokenizer, tmp_path / "saved")):
        assert each.encode("the  press Café\nhello") == [1, 2, 0, 3]
        assert each(["the", "press"], is_split_into_words=True)["input_ids"] == [1, 2]
        assert each.decode([1, 2, 0]) == "the press <unk>"
    (tmp_path / "merges.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"merges\.txt is empty, but must contain the merges"):
        Tokenizer.from_pretrained(tmp_path)


def test_original_pipeline_refuses_other_vocabularies(tmp_path: Path) -> None:
    pytest.importorskip("spacy")
    write_unigram(tmp_path)
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
