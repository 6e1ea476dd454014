"""The command ``gpt1 generate``."""

import json
import sys
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from gpt1_jax._conversion import conversion
from gpt1_jax.checks import INTEGER, at_least, check
from gpt1_jax.cli.adapters import takes_adapter
from gpt1_jax.cli.arguments import Adapter, DType, MaybeModel, Quantize
from gpt1_jax.cli.compilation_cache import Cache, enable_compilation_cache
from gpt1_jax.cli.generation_flags import (
    BeamFlags,
    ConstraintFlags,
    LengthFlags,
    SamplingFlags,
    read_settings,
)
from gpt1_jax.cli.prompts import Prompt, read_prompt_file
from gpt1_jax.cli.texts import check_other_keys, tokenizer_of
from gpt1_jax.config import OpenAIGPTConfig
from gpt1_jax.demo import DEMO, HubOptions, resolve
from gpt1_jax.generation import GenerateOutput, GenerationConfig
from gpt1_jax.generation.batches import default_batch_size, generate_batches, reorder
from gpt1_jax.generation.streaming import stream_detokenized
from gpt1_jax.model import OpenAIGPTForSequenceClassification, OpenAIGPTLMHeadModel
from gpt1_jax.nn.attention import AttentionBackend
from gpt1_jax.quantization import quantized_if
from gpt1_jax.text.decoding import warn_of_unknown_ids
from gpt1_jax.text.tokenizer import Tokenizer
from gpt1_jax.text.tokenizer_files import Pipeline


@takes_adapter(DEMO)
def generate(  # noqa: PLR0915 (from the flags to what is printed, in one go)
    texts: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="PROMPT...", help_behavior_hint=""),
    ],
    length: LengthFlags,
    sampling: SamplingFlags,
    beams: BeamFlags,
    constraints: ConstraintFlags,
    model: MaybeModel = None,
    adapter: Adapter = None,
    prompts: Annotated[str | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None,
    batch_size: int | None = None,
    output_format: Literal["text", "jsonl"] = "text",
    print_ids: bool = False,
    dtype: DType | None = None,
    quantize: Quantize = None,
    attention: AttentionBackend = "manual",
    pipeline: Pipeline | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    compilation_cache: Cache = None,
) -> None:
    """Continue a prompt, or each prompt of a file.

    The output is the prompt with its completion, for a reader: punctuation closes up to its words,
    contractions are whole ("i don't know"), and special tokens are left out; --output-format jsonl
    has the text as the tokenizer decodes it. On a terminal, the completion of a single prompt
    appears word by word, and each of several as soon as it is done, with an empty line between
    them; elsewhere they have the order of the prompts, one a line. Settings without a flag come
    from the checkpoint's generation_config.json, or else from its config.json, or else they have
    the defaults below.

    Each line of a --prompts file is a prompt. A line that starts with a brace is a JSON object
    instead, with the key "prompt" or, for token ids, "ids"; --output-format jsonl copies its other
    keys. Beside "ids" it may have "token_type_ids", ids of tokens whose embeddings are added, such
    as the speakers of a dialogue, and "new_token_type_id", the type of all new tokens. If all
    prompts are ids, the checkpoint needs no tokenizer, and without one ids are printed.

    The JSON object of a completion has the keys prompt, text, ids and new_ids, and for each new
    token the log-probability it was chosen with (transition_scores) and the one under the model
    itself (log_probs). Several completions of a prompt also have an index, and beams have a score.

    Args:
        texts: prompts to continue; quote a prompt that has several words.
        model: checkpoint to use: a folder or a Hugging Face Hub id, with a tokenizer if texts are
            given; by default the bundled demo model.
        adapter: folder of a LoRA adapter, written by gpt1 pretrain, gpt1 finetune or peft, to merge
            into the model; without --model, it is merged into the base model that the adapter
            names.
        length: limits on the length of a completion, and what ends it.
        sampling: random choice of tokens; all but num_return_sequences need do_sample.
        beams: search for the most likely completions; the last two need num_beams above 1.
        constraints: changes to the logits before a token is chosen.
        prompts: file of further prompts, one a line, or - for standard input.
        batch_size: number of prompts to continue at once; a larger number is faster and takes more
            memory (at full size up to 40 MB a prompt, and twice that a beam). By default 8 to 64,
            fewer where the lengths of the prompts differ more, within 1 GB of KV caches.
        output_format: format of the output: text, or jsonl for one JSON object a completion.
        print_ids: print token ids in place of text.
        dtype: dtype of the weights in memory and of the computation; by default the checkpoint's.
        quantize: quantize the weights to int8, which takes a quarter of float32's memory and
            decodes faster; by default they are not quantized.
        attention: implementation of attention: manual, GPT-1's formula; xla or cudnn, JAX's fused
            kernels; or auto, which chooses by the platform.
        pipeline: text preprocessing: huggingface, as transformers does it, or original, as for
            GPT-1's own training (needs the extra "text"); by default the checkpoint's.
        revision: branch, tag or commit of the checkpoint on the Hugging Face Hub; by default its
            main branch.
        local_files_only: read checkpoints of the Hub from the local cache alone, without the
            network.
        compilation_cache: folder that keeps compiled programs for the next run, up to 1 GB, or none
            to keep none; by default $GPT1_CACHE or else ~/.cache/gpt1-jax.
    """
    assert model is not None  # see ``takes_adapter``
    enable_compilation_cache(compilation_cache)
    if batch_size is not None:
        check("batch_size", batch_size, INTEGER, at_least(1))
    as_json = output_format == "jsonl"
    if as_json and print_ids:
        raise ValueError("--print-ids has no effect with --output-format jsonl, which has the ids")
    given = [Prompt(place=f"the prompt {text!r}", text=text) for text in texts]
    if prompts is not None:
        given += read_prompt_file(prompts)
    if not given:
        raise ValueError("give at least one prompt, or a file of them with --prompts")
    if as_json:
        check_other_keys(given, JSON_KEYS)
    hub: HubOptions = {"revision": revision, "local_files_only": local_files_only}
    # All that can be wrong comes before the weights, which may have to be downloaded.
    folder = resolve(model, weights=False, **hub)
    held = conversion.named_architecture(conversion.read_config(folder))
    if held == OpenAIGPTForSequenceClassification.__name__:
        raise ValueError(f"{model} is a classifier ({held}): expected a language model")
    config = OpenAIGPTConfig.from_pretrained(folder)
    settings = read_settings(folder, length, sampling, beams, constraints)
    have_texts = any(prompt.ids is None for prompt in given)
    tokenizer = tokenizer_of(folder, model, pipeline, for_texts=have_texts)
    encoded = [prompt.encode(tokenizer, config.vocab_size) for prompt in given]
    _check_lengths(config, settings, given, encoded)
    token_types = _token_types(given)
    language_model = OpenAIGPTLMHeadModel.from_pretrained(
        model, dtype=dtype, attention=attention, **hub
    )
    language_model = quantized_if(language_model, quantize)
    language_model.generation_config = settings  # whole: what a flag unset stays so

    one_text = len(given) == settings.num_beams == settings.num_return_sequences == 1
    on_terminal = sys.stdout.isatty() and not as_json and not print_ids and tokenizer is not None
    if one_text and on_terminal and tokenizer is not None and given[0].text:
        # It warns of unknown ids by itself.
        pieces = stream_detokenized(language_model, tokenizer, given[0].text, settings)
        try:
            for piece in pieces:
                print(piece, end="", flush=True)
        finally:
            print()  # an interruption leaves a whole line too
        return

    if tokenizer is not None and (settings.stop_strings or not print_ids):
        warn_of_unknown_ids(tokenizer, config.vocab_size)
    from tqdm import tqdm

    if batch_size is None:
        batch_size = default_batch_size(language_model, settings, list(map(len, encoded)))
    finished = generate_batches(
        language_model,
        encoded,
        settings,
        batch_size=batch_size,
        tokenizer=tokenizer,
        **token_types,
    )
    several_batches = len(given) > batch_size
    hidden = None if several_batches else True  # None: unless it would be on a terminal
    finished = tqdm(finished, total=len(given), unit="prompt", disable=hidden)
    if not (on_terminal and several_batches):  # else a reader sees each text as it is done
        finished = enumerate(reorder(finished))
    separator = ""
    for i, output in finished:
        if as_json:
            lines = map(json.dumps, _json_objects(given[i], encoded[i], output, tokenizer))
        elif print_ids or tokenizer is None:
            lines = (" ".join(map(str, row)) for row in output.sequences)
        else:
            lines = map(tokenizer.detokenize, output.sequences)
        for line in lines:
            tqdm.write(f"{separator}{line}")
            separator = "\n" if on_terminal else ""
        sys.stdout.flush()


def _check_lengths(
    config: OpenAIGPTConfig,
    settings: GenerationConfig,
    prompts: Sequence[Prompt],
    encoded: Sequence[list[int]],
) -> None:
    """Check the settings; a prompt that is too long is named by its place."""
    settings = settings.for_model(config)
    settings.check_for(config, len(prompts))
    longest = max(range(len(prompts)), key=lambda i: len(encoded[i]))
    try:
        settings.for_prompts(config, len(encoded[longest]))
    except ValueError as error:
        raise ValueError(f"{prompts[longest].place}: {error}") from None


def _token_types(prompts: Sequence[Prompt]) -> dict[str, Any]:
    """Return the arguments of ``generate_batches`` for token types: of all prompts, or of none."""
    typed = [prompt for prompt in prompts if prompt.token_type_ids is not None]
    if not typed:
        return {}
    if len(typed) < len(prompts):
        other = next(prompt for prompt in prompts if prompt.token_type_ids is None)
        raise ValueError(f'{other.place} must have "token_type_ids", as {typed[0].place} does')
    return {
        "token_type_ids": [prompt.token_type_ids for prompt in prompts],
        "new_token_type_id": [prompt.new_token_type_id for prompt in prompts],
    }


JSON_KEYS = ("prompt", "index", "text", "ids", "new_ids", "score", "transition_scores", "log_probs")


def _json_objects(
    prompt: Prompt, encoded: Sequence[int], output: GenerateOutput, tokenizer: Tokenizer | None
) -> Iterator[dict[str, object]]:
    """Yield the JSON objects of the texts of one prompt, without texts if there is no tokenizer."""

    def numbers(row: np.ndarray) -> list[float | None]:
        # The few digits that make a float32, not a float64's; JSON has no NaN.
        return [None if np.isnan(x) else float(str(x)) for x in row]

    for i, ids in enumerate(output.sequences):
        fields = dict(prompt.other)
        if tokenizer is not None:
            fields["prompt"] = tokenizer.decode(encoded) if prompt.text is None else prompt.text
        if len(output.sequences) > 1:
            fields["index"] = i
        if tokenizer is not None:
            fields["text"] = tokenizer.decode(ids)
        fields["ids"] = ids.tolist()
        fields["new_ids"] = ids[len(encoded) :].tolist()
        if output.sequences_scores is not None:
            fields["score"] = float(str(output.sequences_scores[i]))
        fields["transition_scores"] = numbers(output.transition_scores[i])
        fields["log_probs"] = numbers(output.log_probs[i])
        yield fields
