"""``--adapter``: commands see the merged checkpoint, and errors name the adapter."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.small_training import (
    finetune,
    pretrain,
    save_random_adapters,
    write_checkpoint,
    write_rows,
    write_text,
)

from gpt1_jax import cli
from gpt1_jax.cli.adapters import takes_adapter
from gpt1_jax.training import loop

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of a language model and a classifier, and the adapters in them."""
    folder = tmp_path_factory.mktemp("runs")
    write_checkpoint(folder / "base", n_positions=16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train", save_random_adapters)
        given: Any = {"model": folder / "base", "lora_rank": 2}
        pretrain([write_text(folder / "text.txt", lines=8)], folder / "lm", steps=2, **given)
        rows = [{"text": "the king saw a cat", "label": "x"}, {"text": "no", "label": "y"}]
        rows_file = write_rows(folder / "rows.jsonl", rows)
        finetune("classification", rows_file, None, folder / "labels", **given)
    return folder


@pytest.mark.parametrize("name", ["generate", "score", "surprisal", "embed", "evaluate", "predict"])
def test_command_has_adapter(name: str) -> None:
    parameters = inspect.signature(cli.command(name)).parameters
    assert parameters["adapter"].default is parameters["model"].default is None
    assert hasattr(cli.command(name), "__wrapped__")


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("arguments", "folder"),
    [
        (["score", "the king saw"], "lm"),
        (["generate", "the king", "--print-ids", "--max-new-tokens", "4"], "lm"),
        (["predict", "the king saw a cat", "a dog"], "labels"),
    ],
)
def test_cli_adapter_gives_what_the_merged_model_gives(
    run: Run, runs: Path, arguments: list[str], folder: str
) -> None:
    merged = run(*arguments, "--model", runs / folder)
    assert merged[0] == 0
    assert run(*arguments, "--adapter", runs / folder / "adapter")[:2] == merged[:2]
    if folder == "lm":
        assert run(*arguments, "--model", runs / "base")[1] != merged[1]


def test_takes_adapter_merges_into_a_folder_that_is_removed(runs: Path) -> None:
    seen: list[Path] = []

    @takes_adapter("demo")
    def command(
        model: str | None = None,
        adapter: Path | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
    ) -> None:
        assert model is not None
        seen.append(Path(model))
        if adapter is None and model != "demo":
            fields = json.loads((Path(model) / "config.json").read_text())
            raise ValueError(f"{model} is a {fields['architectures'][0]}")

    command()
    assert seen.pop() == Path("demo")
    adapter = runs / "labels" / "adapter"
    message = f"^{adapter} is a OpenAIGPTForSequenceClassification$"
    with pytest.raises(ValueError, match=message):
        command(model=str(runs / "base"), adapter=adapter)
    assert not seen.pop().exists()


def test_cli_adapter_reports_wrong_input(run: Run, runs: Path, tmp_path: Path) -> None:
    adapter = runs / "labels" / "adapter"
    assert run("generate", "a", "--adapter", adapter) == (
        2,
        "",
        f"gpt1: {adapter} is a classifier (OpenAIGPTForSequenceClassification): expected a "
        "language model\n",
    )
    status, _, err = run("score", "a", "--adapter", tmp_path)
    assert (status, err) == (2, f"gpt1: {tmp_path} has no adapter_config.json\n")
    status, _, err = run("predict", "a")
    assert (status, err) == (
        2,
        "gpt1: give a checkpoint with --model, or an adapter with --adapter\n",
    )
