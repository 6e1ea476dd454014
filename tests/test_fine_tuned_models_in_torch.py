"""Fine-tuned folders in transformers' pipeline, and the scripts of the page about them."""

import functools
import io
import re
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import transformers  # noqa: E402
from support.small_training import (  # noqa: E402
    finetune,
    save_unchanged,
    write_checkpoint,
    write_rows,
)

import gpt1_jax as gpt1  # noqa: E402
from gpt1_jax.training import loop  # noqa: E402
from gpt1_jax.training.data.labelled import Row  # noqa: E402
from gpt1_jax.training.data.tasks import collate  # noqa: E402
from gpt1_jax.training.task_file import read_task  # noqa: E402
from gpt1_jax.training.task_objective import task_outputs  # noqa: E402

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "fine-tuned-models-in-torch.md"
POSITIONS = 32
LONG = "the king saw a cat on the hill and sat " * 4
ROLES = {
    "classification": ("text",),
    "regression": ("text",),
    "entailment": ("premise", "hypothesis"),
    "similarity": ("text1", "text2"),
    "multiple-choice": ("context", "a", "b"),
}
LABELS: dict[str, Sequence[Any]] = {
    "classification": ("no", "yes", "maybe"),
    "regression": (0.5, -1, 2),
    "entailment": ("no", "yes", "maybe"),
    "similarity": ("0", "1", "1"),
    "multiple-choice": (0, 1, 1),
}
# An unknown character, capitals, accents, signs, a spelled <unk>, and texts beyond every budget.
TEXTS = ["the king saw a cat", "A BIG dog!", "the queen \u2603 ran", "caf\u00e9 <unk> \u2603", LONG]


SETTINGS: dict[str, dict[str, Any]] = {
    "classification": {"lora_rank": 2, "max_tokens": 3},
    "multiple-choice": {"choices": ("a", "b")},
}


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a task, as a run without a step writes it; all lie side by side."""
    root = tmp_path_factory.mktemp("tasks")
    base = write_checkpoint(root / "base", n_positions=POSITIONS, initializer_range=0.3)

    @functools.cache
    def written(name: str) -> Path:
        task: Any = name
        rows = [
            {**dict.fromkeys(ROLES[name], f"the {label}"), "label": label} for label in LABELS[name]
        ]
        train = write_rows(root / f"{name}.jsonl", rows)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "train", save_unchanged)
            finetune(task, train, None, root / name, base, batch_size=2, **SETTINGS.get(name, {}))
        return root / name

    return written


def ours(folder: Path, texts: Sequence[Sequence[str]]) -> np.ndarray:
    """The probabilities, or the numbers, that gpt1_jax gives: (rows, classes)."""
    model: Any = gpt1.from_pretrained(folder)
    task, columns = read_task(folder, gpt1.Tokenizer.from_pretrained(folder), POSITIONS)
    label = (task.classes or ("0",))[0]
    roles = [role for role in columns if role != "label"]
    rows = [Row("here", dict(zip(roles, each, strict=True)), label) for each in texts]
    batch = collate([task.encode(row) for row in rows], n_positions=POSITIONS)
    outputs = np.asarray(jax.jit(lambda: task_outputs(model, batch))())
    found = outputs if task.predicts == "numbers" else softmax(outputs)
    assert np.ptp(found, axis=0).max() > 0.01  # the rows are told apart
    return found


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize(
    "name",
    ["classification", "entailment", pytest.param("regression", marks=pytest.mark.nightly)],
)
def test_pipeline_gives_labels_and_scores_of_this_package(
    folder_of: Callable[[str], Path], name: str
) -> None:
    folder = folder_of(name)
    texts = [(text,) for text in TEXTS]
    if name == "entailment":
        # Of a pair, both or none are beyond their budgets.
        texts = [(a, b) for a in TEXTS for b in TEXTS if (a == LONG) == (b == LONG)]
    expected = ours(folder, texts)
    pipe: Any = transformers.pipeline("text-classification", str(folder), truncation=True)
    inputs: list[Any] = [
        {"text": each[0], "text_pair": each[1]} if len(each) == 2 else each[0] for each in texts
    ]
    names = list(pipe.model.config.id2label.values())
    for batch_size in (1, 4):
        best = pipe(inputs, batch_size=batch_size)
        everything = pipe(inputs, batch_size=batch_size, top_k=None)
        for scores, one, found in zip(expected, best, everything, strict=True):
            assert one["label"] == names[scores.argmax()]
            assert one["score"] == pytest.approx(scores.max(), abs=1e-5)
            by_name = {each["label"]: each["score"] for each in found}
            np.testing.assert_allclose([by_name[n] for n in names], scores, atol=1e-5, rtol=0)
    (one,) = pipe([inputs[0]])
    assert one["score"] == pytest.approx(expected[0].max(), abs=1e-5)
    tokenizer = gpt1.Tokenizer.from_pretrained(folder)
    for each in texts:
        ids = tokenizer(*each, truncation=True).input_ids
        assert pipe.tokenizer(*each, truncation=True)["input_ids"] == ids


def test_pipeline_needs_its_argument_to_cut_texts(folder_of: Callable[[str], Path]) -> None:
    """The page says so; it need not where a later transformers cuts by itself."""
    pipe: Any = transformers.pipeline("text-classification", str(folder_of("classification")))
    with pytest.raises(RuntimeError, match="size of tensor"):
        pipe(LONG)


@pytest.mark.nightly
# transformers warns of a name that peft uses, and of the mean that new rows are drawn around.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to True but the target:UserWarning")
def test_scripts_of_the_page_give_what_this_package_does(
    folder_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("peft")
    scripts = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    folders = {task: folder_of(task) for task in ROLES}
    monkeypatch.chdir(folders["classification"].parent)
    printed, names = io.StringIO(), [{} for _ in scripts]
    with redirect_stdout(printed):
        for script, namespace in zip(scripts, names, strict=True):
            exec(compile(script, str(PAGE), "exec"), namespace)
    assert len(printed.getvalue().splitlines()) == 6
    _, similarity, choice, exact, adapter = names

    def close(found: Any, expected: np.ndarray) -> None:
        np.testing.assert_allclose(np.stack(list(found)), expected, atol=1e-5, rtol=0)

    pairs = [("the king saw a cat", "a cat"), (LONG, LONG), ("a \u2603", "a dog")]
    found = [list(similarity["similarity"](*pair).values()) for pair in pairs]
    close(found, ours(folders["similarity"], pairs))
    several = [("the king saw a cat", "it ran", "on the hill it sat"), (LONG, LONG, f"no {LONG}")]
    found = [choice["choose"](context, choices) for context, *choices in several]
    close(found, ours(folders["multiple-choice"], several))
    pairs = [("the king", LONG), (LONG, "the king"), (LONG, LONG)]
    found = [list(exact["entailment"](*pair).values()) for pair in pairs]
    close(found, ours(folders["entailment"], pairs))
    tokenizer = gpt1.Tokenizer.from_pretrained(folders["classification"])
    batch = tokenizer(TEXTS, truncation=True, padding=True, return_tensors="np")
    with torch.no_grad():
        logits = adapter["merged"](torch.from_numpy(batch.input_ids)).logits
    close(softmax(logits.numpy()), ours(folders["classification"], [(text,) for text in TEXTS]))
