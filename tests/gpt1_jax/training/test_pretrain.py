"""Pre-training: text in, a language model out that all can open; and every setting counts."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.small_models import difference, leaves_equal
from support.small_training import Prepared, prepare, pretrain, write_checkpoint, write_text

import conversion
import gpt1_jax as gpt1
from gpt1_jax.pretrained import flatten
from gpt1_jax.training.data.corpus import load_tokens
from gpt1_jax.training.log import read_log
from gpt1_jax.training.loop import TrainProgress
from gpt1_jax.training.perplexity import text_measures
from gpt1_jax.training.pretrain import NewModel, PretrainSettings


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A text to train on and one to validate on."""
    folder = tmp_path_factory.mktemp("texts")
    return write_text(folder / "train.txt"), write_text(folder / "valid.txt", lines=10, seed=1)


@pytest.fixture(scope="module")
def trained(texts: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with validation."""
    out = tmp_path_factory.mktemp("trained") / "run"
    progress = pretrain([texts[0]], out, valid=[texts[1]], steps=60, eval_every=25, n_layer=2)
    assert progress.best is not None
    assert progress.best_step == 60
    return out


def params_of(folder: Path) -> Any:
    return conversion.read(folder)[1]


def losses(folder: Path, name: str = "loss") -> list[float]:
    return [record[name] for record in read_log(folder / "log.jsonl") if name in record]


# The result.


@pytest.mark.nightly
def test_pretrain_reduces_the_loss(trained: Path, texts: tuple[Path, Path]) -> None:
    tokenizer = gpt1.Tokenizer.from_pretrained(trained)
    first, last = losses(trained)[0], losses(trained)[-1]
    assert abs(first - math.log(len(tokenizer))) < 0.2  # measured: 0.09; nothing is known yet
    assert last < 0.65 * first  # measured: 0.54
    assert len(losses(trained)) == 60
    assert len(losses(trained, "valid_loss")) == 3  # at 25, 50 and the end
    assert losses(trained, "valid_perplexity")[-1] < 15  # measured: 11.2, of 79 tokens
    assert (trained / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_pretrain_saved_model_matches_best_logged_loss(
    trained: Path, texts: tuple[Path, Path]
) -> None:
    model = gpt1.OpenAIGPTLMHeadModel.from_pretrained(trained)
    tokenizer = gpt1.Tokenizer.from_pretrained(trained)
    text = load_tokens([texts[1]], tokenizer, trained / "tokens")
    found = text_measures(model, text)(model.params)
    # The same numbers in the same order; measured: equal.
    assert found["loss"] == pytest.approx(min(losses(trained, "valid_loss")), rel=1e-6)


def test_pretrain_output_loads_and_generates(trained: Path) -> None:
    model = gpt1.OpenAIGPTLMHeadModel.from_pretrained(trained)
    tokenizer = gpt1.Tokenizer.from_pretrained(trained)
    assert model.config.vocab_size == len(tokenizer)
    assert (model.config.n_layer, model.config.n_positions) == (2, 16)
    assert model.config.embd_pdrop == model.config.attn_pdrop == model.config.resid_pdrop == 0
    prompt = tokenizer.encode("the cat")
    ids = gpt1.generate(model, [prompt], max_new_tokens=8)
    assert tokenizer.decode(ids[0]).startswith("the cat ")


def test_pretrain_output_matches_transformers(trained: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(trained)
    ours = gpt1.Tokenizer.from_pretrained(trained)
    text = "The king saw the red cat on the hill"
    ids = np.array([ours.encode(text)], np.int32)
    assert tokenizer(text)["input_ids"] == ids[0].tolist()
    reference = transformers.AutoModelForCausalLM.from_pretrained(trained)
    with torch.no_grad():
        theirs = reference(torch.from_numpy(ids.astype(np.int64))).logits
    apply, params = gpt1.functional(gpt1.OpenAIGPTLMHeadModel.from_pretrained(trained))
    assert difference(apply(params, ids).logits, theirs) < 1e-5  # measured: 2.4e-7


def test_pretrain_rerun_of_finished_run_changes_nothing(
    trained: Path, texts: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in (trained / "tokens").iterdir()}
    weights, log = (trained / "model.safetensors").read_bytes(), losses(trained)
    again = pretrain([texts[0]], trained, valid=[texts[1]], steps=60, eval_every=25, n_layer=2)
    assert again.best_step == 60
    assert (trained / "model.safetensors").read_bytes() == weights
    assert losses(trained) == log
    after = {path.name: path.stat().st_mtime_ns for path in (trained / "tokens").iterdir()}
    assert after == before  # the texts are not read again
    assert capsys.readouterr().out == ""


# Where it starts from.


@pytest.mark.nightly
def test_pretrain_continues_from_existing_model(
    trained: Path, texts: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    pretrain([texts[0]], out, model=trained, steps=2, learning_rate=1e-6, dropout=0.2)
    assert losses(out)[0] < 0.65 * math.log(len(gpt1.Tokenizer.from_pretrained(trained)))
    assert (out / "vocab.json").read_bytes() == (trained / "vocab.json").read_bytes()
    before, after = params_of(trained), params_of(out)
    assert not leaves_equal(after, before)
    for path, leaf in flatten(after).items():
        assert difference(leaf, flatten(before)[path]) < 1e-5, path  # two steps of 1e-6
    assert gpt1.OpenAIGPTConfig.from_pretrained(out).resid_pdrop == 0.2


@pytest.fixture(scope="module")
def adapted(texts: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of adapters, with dropout on their input; its base is beside it."""
    folder = tmp_path_factory.mktemp("adapted")
    write_checkpoint(folder / "base", n_positions=16)
    fields: dict[str, Any] = {"lora_rank": 2, "lora_targets": ("all-linear",), "use_rslora": True}
    pretrain(
        [texts[0]],
        folder / "run",
        valid=[texts[1]],
        model=folder / "base",
        steps=20,
        learning_rate=1e-2,
        lora_dropout=0.3,
        **fields,
    )
    return folder / "run"


@pytest.mark.nightly
def test_pretrain_lora_trains_only_adapters(adapted: Path, texts: tuple[Path, Path]) -> None:
    # Of random weights, little can be learned by adapters.
    assert losses(adapted)[-1] < losses(adapted)[0] - 0.01  # measured: 0.037
    before, after = (flatten(params_of(f)) for f in (adapted.parent / "base", adapted))
    changed = {path for path, leaf in after.items() if not np.array_equal(leaf, before[path])}
    assert changed == {path for path in after if path[-1] == "kernel"}
    # Validated without dropout, as what is saved computes.
    model = gpt1.OpenAIGPTLMHeadModel.from_pretrained(adapted)
    text = load_tokens([texts[1]], gpt1.Tokenizer.from_pretrained(adapted), adapted / "tokens")
    found = text_measures(model, text)(model.params)["loss"]
    assert found == pytest.approx(min(losses(adapted, "valid_loss")), rel=1e-6)
    run = json.loads((adapted / "run.json").read_text())
    parameters = 2 * (4 * 16 + 2 * 16 + 5 * 16 + 5 * 16)  # c_attn, c_proj, c_fc, c_proj
    assert run["summary"]["trained_parameters"] == parameters


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_pretrain_adapter_in_peft_matches_merged_model(adapted: Path) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    ids = np.array([gpt1.Tokenizer.from_pretrained(adapted).encode("the king saw a cat")], np.int32)
    apply, params = gpt1.functional(gpt1.OpenAIGPTLMHeadModel.from_pretrained(adapted))
    reference = peft.AutoPeftModelForCausalLM.from_pretrained(adapted / "adapter").eval()
    with torch.no_grad():
        theirs = reference(torch.from_numpy(ids.astype(np.int64))).logits
    assert difference(apply(params, ids).logits, theirs) < 1e-5


@pytest.mark.nightly
def test_pretrain_trains_untied_head(texts: tuple[Path, Path], tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "base", tie_word_embeddings=False, n_positions=16)
    pretrain([texts[0]], tmp_path / "run", model=tmp_path / "base", steps=30)
    assert losses(tmp_path / "run")[-1] < 0.8 * losses(tmp_path / "run")[0]
    before, after = params_of(tmp_path / "base"), params_of(tmp_path / "run")
    assert not np.array_equal(before["lm_head"]["kernel"], after["lm_head"]["kernel"])


@pytest.mark.nightly
def test_pretrain_uses_given_tokenizer(texts: tuple[Path, Path], tmp_path: Path) -> None:
    base, out = write_checkpoint(tmp_path / "base"), tmp_path / "run"
    pretrain([texts[0]], out, tokenizer=base, steps=1)
    assert (out / "vocab.json").read_bytes() == (base / "vocab.json").read_bytes()
    assert gpt1.OpenAIGPTConfig.from_pretrained(out).vocab_size == len(
        gpt1.Tokenizer.from_pretrained(base)
    )


# What the settings do.

PLAIN: dict[str, Any] = {"steps": 4, "dropout": 0.1}


@pytest.fixture(scope="module")
def plain(texts: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of a few steps, with dropout and without validation."""
    out = tmp_path_factory.mktemp("plain") / "run"
    assert pretrain([texts[0]], out, **PLAIN).best is None
    return out


def test_pretrain_without_validation_saves_last_model(plain: Path) -> None:
    assert len(losses(plain)) == PLAIN["steps"]
    assert losses(plain, "valid_loss") == []
    assert gpt1.OpenAIGPTConfig.from_pretrained(plain).attn_pdrop == PLAIN["dropout"]


@pytest.fixture(scope="module")
def prepared(
    texts: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Prepared]:
    """Prepare a run with some settings changed."""

    def prepared_with(**change: Any) -> Prepared:
        out, fields = tmp_path_factory.mktemp("prepared") / "run", {**PLAIN, **change}
        return prepare(lambda: pretrain([texts[0]], out, **fields))

    return prepared_with


@pytest.fixture(scope="module")
def prepared_by_default(prepared: Callable[..., Prepared]) -> Prepared:
    return prepared()


@pytest.mark.parametrize(
    "change",
    [
        {"n_head": 4},
        {"dropout": 0.2},
        {"embedding_dropout": "tables"},
        {"seed": 1},
        {"dtype": "bfloat16"},
        {"batch_size": 4},
    ],
    ids=lambda change: "-".join(map(str, *change.items())),
)
def test_pretrain_loss_settings_change_first_loss(
    prepared: Callable[..., Prepared], prepared_by_default: Prepared, change: dict[str, Any]
) -> None:
    changed = prepared(**change)
    assert changed.first_loss != prepared_by_default.first_loss
    assert changed.dtypes == {"float32"}
    assert changed.updates == prepared_by_default.updates


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer": "adamw"},
        {"schedule": "linear"},
        {"warmup": 2},
        {"weight_decay": 0.5},
        {"max_grad_norm": 1e-9},
        {"learning_rate": 1e-3},
    ],
    ids=lambda change: "-".join(map(str, *change.items())),
)
def test_pretrain_optimizer_settings_change_updates(
    prepared: Callable[..., Prepared], prepared_by_default: Prepared, change: dict[str, Any]
) -> None:
    changed = prepared(**change)
    assert changed.first_loss == prepared_by_default.first_loss
    assert changed.updates != prepared_by_default.updates


def test_pretrain_seed_changes_weights_and_order(
    prepared: Callable[..., Prepared], prepared_by_default: Prepared
) -> None:
    changed = prepared(seed=1)
    assert changed.batch != prepared_by_default.batch
    assert changed.weights != prepared_by_default.weights


def test_pretrain_equal_settings_give_equal_runs(
    prepared: Callable[..., Prepared], prepared_by_default: Prepared
) -> None:
    assert prepared() == prepared_by_default


def test_pretrain_reads_folders_of_json_lines(
    texts: tuple[Path, Path],
    tmp_path: Path,
    prepared_by_default: Prepared,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    lines = texts[0].read_text().splitlines(keepends=True)
    for i in range(2):
        half = lines[i * 30 : (i + 1) * 30]
        records = (json.dumps({"text": line}) + "\n" for line in half)
        (folder / f"{i}.jsonl").write_text("".join(records))
    assert prepare(lambda: pretrain([folder], tmp_path / "run", **PLAIN)) == prepared_by_default
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["texts"] == [str(folder / "0.jsonl"), str(folder / "1.jsonl")]
    assert run["summary"]["train"]["characters"] == len("".join(lines))
    assert capsys.readouterr().err.startswith("to train on: 2 files, ")


def test_pretrain_steps_set_number_of_steps(
    prepared: Callable[..., Prepared], prepared_by_default: Prepared
) -> None:
    assert (prepared_by_default.steps, prepared(steps=5).steps) == (4, 5)


@pytest.mark.nightly
@pytest.mark.parametrize(
    "change",
    [{"remat": "linear"}, {"remat": "all"}, {"accumulate": 8, "dropout": 0.0}],
    ids=lambda change: "-".join(map(str, change.values())),
)
def test_pretrain_memory_settings_keep_the_result(
    plain: Path, texts: tuple[Path, Path], tmp_path: Path, change: dict[str, Any]
) -> None:
    if "dropout" in change:  # micro-batches draw masks of their own
        plain = tmp_path / "plain"
        pretrain([texts[0]], plain, steps=4)
    pretrain([texts[0]], tmp_path / "run", **{**PLAIN, **change})
    first, second = (flatten(params_of(folder)) for folder in (plain, tmp_path / "run"))
    for path, leaf in first.items():
        assert difference(leaf, second[path]) < 1e-6, path  # measured: 1e-7


def test_pretrain_epochs_convert_to_steps(
    plain: Path, texts: tuple[Path, Path], tmp_path: Path
) -> None:
    tokens = json.loads(next((plain / "tokens").glob("*.json")).read_text())["tokens"]
    steps = math.ceil((tokens - 1) // 16 / 8)  # of an epoch
    pretrain([texts[0]], tmp_path / "run", dropout=0.1, epochs=(PLAIN["steps"] - 0.9) / steps)
    assert len(losses(tmp_path / "run")) == PLAIN["steps"]
    assert leaves_equal(params_of(tmp_path / "run"), params_of(plain))


def test_pretrain_settings_default_to_the_paper() -> None:
    assert NewModel().config(40478) == gpt1.OpenAIGPTConfig()
    settings = PretrainSettings()
    assert (settings.epochs, settings.batch_size, settings.dropout) == (100, 64, 0.1)


# What is wrong.


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"texts": []}, "give at least one text file"),
        ({"texts": ["nowhere.txt"]}, "no file .*nowhere.txt"),
        ({"texts": ["empty"]}, "the folder empty has no file of the kinds .txt"),
        ({"texts": ["*.md"]}, r"no file matches \*.md"),
        ({"texts": ["bare.jsonl"]}, "bare.jsonl, line 1: there is no column 'text'"),
        ({"texts": ["empty.txt"]}, "empty.txt is empty"),
        ({"texts": ["blank.txt"]}, "no letters|holds no text"),
        ({"texts": ["latin.txt"]}, "latin.txt is not UTF-8"),
        ({"texts": ["short.txt"]}, "short.txt: 4 tokens are too few, since one block takes 17"),
        ({"valid": ["nowhere.txt"]}, "no file .*nowhere.txt"),
        ({"valid": ["empty.txt"]}, "empty.txt is empty"),
        ({"valid": ["blank.txt"]}, "blank.txt holds no text"),
        ({"valid": ["letter.txt"]}, "letter.txt: one token is no text"),
        ({"epochs": 0}, "epochs is 0, but must be a number above 0"),
        ({"epochs": math.nan}, "epochs is nan"),
        ({"steps": 0}, "steps is 0, but must be at least 1"),
        ({"batch_size": 0}, "batch_size is 0, but must be at least 1"),
        ({"batch_size": 6, "accumulate": 4}, "batch_size is 6, but must be a multiple of accumu"),
        ({"dropout": 1.0}, r"dropout is 1.0, but must be a dropout rate in \[0, 1\)"),
        (
            {"embedding_dropout": "rows"},
            'embedding_dropout is \'rows\', but must be "sum" or "tables"',
        ),
        ({"dtype": "float16"}, 'dtype is \'float16\', but must be "float32" or "bfloat16"'),
        ({"remat": "some"}, 'remat is \'some\', but must be "none" or "linear" or "all"'),
        ({"seed": -1}, "seed is -1, but must be in"),
        ({"warmup": 100, "steps": 99}, "warmup is 100 steps, but must be at most total_steps = 99"),
        ({"n_head": 3}, "n_head is 3, but must be a divisor of n_embd = 16"),
        ({"n_positions": 0}, "n_positions is 0, but must be a positive integer"),
        ({"merges": 0}, "merges is 0, but must be at least 1"),
        ({"eval_every": 2}, "eval_every is 2, but needs a validation set"),
        ({"patience": 2}, "patience is 2, but needs a validation set"),
        ({"model": "./nowhere"}, "no folder './nowhere'"),
        ({"tokenizer": "./nowhere"}, "no folder './nowhere'"),
        ({"model": "a", "tokenizer": "b"}, "a has its own tokenizer: give either model or token"),
        ({"model": "a", "n_layer": 3}, "n_layer is for a new model, but model is a"),
        ({"tokenizer": "a", "merges": 3}, "merges is for a new tokenizer, but tokenizer is a"),
        ({"lora_rank": 2}, "lora_rank needs model, the checkpoint that the adapters are trained"),
        ({"lora_dropout": 0.1}, "lora_dropout has no effect without lora_rank"),
        ({"model": "BASE"}, "the tokenizer has 94 tokens, but the model's vocab_size is 80"),
    ],
)
def test_pretrain_rejects_bad_input_before_training(
    texts: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fields: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    files = {"empty": b"", "blank": b" \n\n ", "latin": b"na\xefve", "short": b"a a a a\n"}
    for name, content in {**files, "letter": b"a"}.items():
        Path(f"{name}.txt").write_bytes(content)
    Path("empty").mkdir()
    Path("bare.jsonl").write_text('{"body": "a"}')
    if fields.get("model") == "BASE":
        fields["model"] = write_checkpoint(tmp_path / "base", vocab_size=80)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        pretrain(**{"texts": [texts[0]], "out": tmp_path / "run", **fields})
    assert "\n" not in str(caught.value)
    # The folder is still free, for the command put right.
    assert {path.name for path in (tmp_path / "run").glob("*")} <= {"tokens"}


def test_pretrain_rejects_folder_of_another_run(
    texts: tuple[Path, Path], tmp_path: Path, trained: Path
) -> None:
    with pytest.raises(ValueError, match="holds a run with other settings") as caught:
        pretrain([texts[0]], trained, valid=[texts[1]], steps=60, eval_every=25, n_layer=1)
    assert str(caught.value).splitlines()[1:] == ["  n_layer: 2 there, 1 now"]
    base = write_checkpoint(tmp_path / "base")
    with pytest.raises(ValueError, match="holds a checkpoint that no run has begun here"):
        pretrain([texts[0]], base, steps=60)


def test_pretrain_rejects_changed_text_on_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, out = write_text(tmp_path / "text.txt"), tmp_path / "run"
    monkeypatch.setattr("gpt1_jax.training.loop.train", lambda *_: TrainProgress())
    pretrain([text], out, steps=1)
    write_text(text, seed=9)
    with pytest.raises(ValueError, match=r"texts_content: .* there, .* now"):
        pretrain([text], out, steps=1)
