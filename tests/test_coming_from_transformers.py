"""The page for those who come from transformers: its scripts run, its differences are tested."""

import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "coming-from-transformers.md"


def test_page_and_tests_name_the_same_differences() -> None:
    named = re.findall(r"^\| \*\*(.+?)\*\*: ", PAGE.read_text(), flags=re.MULTILINE)
    tests = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]
    marked = re.findall(r'^@pytest\.mark\.difference\("(.+)"\)$', "\n".join(tests), re.MULTILINE)
    assert len(named) == len(set(named)) > 20
    assert sorted(named) == sorted(set(marked))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the language model and the classifier that the scripts read."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from gpt1_jax.demo import resolve

    folder = tmp_path_factory.mktemp("checkpoints")
    tokenizer = transformers.OpenAIGPTTokenizer.from_pretrained(resolve("demo"))
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    torch.manual_seed(0)
    config = transformers.OpenAIGPTConfig.from_pretrained(resolve("demo"))
    config.pad_token_id = tokenizer.pad_token_id
    model = transformers.OpenAIGPTLMHeadModel.from_pretrained(resolve("demo"))
    model.resize_token_embeddings(len(tokenizer))
    config.vocab_size = len(tokenizer)
    classifier = transformers.OpenAIGPTForSequenceClassification(config)
    with torch.no_grad():  # wide enough for the classes to differ
        classifier.score.weight.copy_(torch.randn_like(classifier.score.weight))
    model.save_pretrained(folder / "gpt1")
    classifier.save_pretrained(folder / "classifier")
    for name in ("gpt1", "classifier"):
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.mark.nightly
def test_script_and_its_port_print_and_save_the_same(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.numpy import load_file

    scripts = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(scripts) == 2
    monkeypatch.chdir(checkpoints)
    printed, saved = [], []
    for script in scripts:
        capsys.readouterr()
        exec(compile(script, str(PAGE), "exec"), {})
        printed.append(capsys.readouterr().out)
        saved.append(load_file("copy/model.safetensors"))
        assert Path("copy/tokenizer.json").is_file()
    assert printed[0] == printed[1]
    assert len(printed[0].splitlines()) == 3
    theirs, ours = saved
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name])
