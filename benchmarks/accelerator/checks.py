"""Whether the results are right on this device."""

import dataclasses
import importlib.util
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gpt1_jax as gpt1
from benchmarks.accelerator import work
from benchmarks.accelerator.bench import Bench
from benchmarks.accelerator.host import FLOAT64, LOSSES, TEXTS
from benchmarks.accelerator.runner import LeaveOutError, Result, Row
from gpt1_jax.export import export_forward
from gpt1_jax.nn.attention import Cache
from gpt1_jax.nn.dtypes import at_least_float32
from gpt1_jax.sharding.mesh import make_mesh, shard_model

# The most that an error may be, in terms of that of the host in the same dtype or of the formula.
TIMES_THE_HOST, TIMES_THE_FORMULA = 3.0, 1.5
COARSE = 5e-2  # relative, of half precision and of products in TF32 or bfloat16
LOSS_TOLERANCE = 5e-5  # relative, between the losses of two kinds of devices
EXACT = "highest"
Case = tuple[int, str | None]  # tokens of a row, and the side of its padding
PRECISIONS: dict[str, dict[str, Any]] = {
    "float32, precision highest": {"precision": EXACT},
    "float32, default precision": {},
    "bfloat16": {"dtype": "bfloat16", "param_dtype": "float32"},
}


def precision(bench: Bench) -> Result:
    """Compare logits and gradients with float64; float32 at "highest" has to be as good as a CPU's.

    What a user gets who sets nothing is the second row.
    """
    exact = bench.reference(FLOAT64)
    gradients = [name for name in exact if name.startswith("[")]

    def errors(name: str, found: dict[str, np.ndarray]) -> Row:
        apart = [work.relative_error(found[each], exact[each]) for each in gradients]
        alike = found["logits"].argmax(-1) == exact["logits"].argmax(-1)
        return {
            "": name,
            "logits, relative RMS error": work.relative_error(found["logits"], exact["logits"]),
            "greatest difference": float(np.abs(found["logits"] - exact["logits"]).max()),
            "same likeliest token": float(alike.mean()),
            "loss, relative error": abs(float(found["loss"] / exact["loss"]) - 1),
            "gradients, relative RMS error": float(np.max(apart)),
        }

    host = {name: exact[f"host {name}"] for name in ("logits", "loss", *gradients)}
    ids = work.random_ids(bench.config, *bench.sizes.logits)
    rows = [
        errors(name, work.logits_and_gradients(bench.load(**numerics), ids))
        for name, numerics in PRECISIONS.items()
    ]
    rows.append(errors("float32 on the host", host))
    names = ("logits, relative RMS error", "gradients, relative RMS error")
    passed = all(rows[0][name] <= TIMES_THE_HOST * rows[-1][name] for name in names)
    passed = passed and all(row[name] <= COARSE for row in rows for name in names)
    note = f"Passes where float32 at {EXACT!r} is at most {TIMES_THE_HOST:g} times as far from "
    note += "float64 as the host's float32, in logits and gradients, and no row is further from it "
    return Result(rows, passed, f"{note}than {COARSE:g}.")


def attention(bench: Bench) -> Result:
    """Compare each attention backend with the formula, at tokens, in outputs and gradients."""
    config = dataclasses.replace(bench.config, n_layer=1)
    rows, tokens = bench.sizes.attention
    cases: dict[str, Case] = {
        "no padding": (tokens, None),
        "right padding": (tokens, "right"),
        "left padding": (tokens, "left"),
        "odd length": (tokens - 1, "right"),
    }
    found: list[Row] = []
    exact: dict[str, list[np.ndarray]] | None = None
    for dtype in ("float32", "bfloat16", "float16"):
        formula: dict[str, list[np.ndarray]] | None = None
        for backend in ("xla", "cudnn"):
            try:
                model = _one_block(config, backend, dtype)
            except ValueError as error:
                found.append({"": f"{backend}, {dtype}", "left out": str(error)})
                continue
            exact = exact or _exactly(config, cases, rows)
            formula = formula or _attended(_one_block(config, "manual", dtype), cases, rows)
            row: Row = {"": f"{backend}, {dtype}"}
            found.append(row)
            try:
                attended = _attended(model, cases, rows)
            except (RuntimeError, NotImplementedError) as error:  # cuDNN's, when it compiles
                row["error"] = str(error).splitlines()[0]
                continue
            for name, arrays in attended.items():
                ratios = [
                    work.relative_error(ours, right) / work.relative_error(theirs, right)
                    for ours, theirs, right in zip(arrays, formula[name], exact[name], strict=True)
                ]
                row[name] = float(np.max(ratios))  # NaN if one is
    ratios = [value for row in found for value in row.values() if isinstance(value, float)]
    if not ratios and not any("error" in row for row in found):
        raise LeaveOutError("no backend but the formula computes here")
    note = "One block of full width. Errors of states and gradients against the formula in "
    note += "float64, over those of the formula in the same dtype; "
    note += f"passes where none is above {TIMES_THE_FORMULA:g}."
    failed = any("error" in row for row in found)
    return Result(found, not failed and bool(np.max(ratios) <= TIMES_THE_FORMULA), note)


def _exactly(
    config: gpt1.OpenAIGPTConfig, cases: dict[str, Case], rows: int
) -> dict[str, list[np.ndarray]]:
    """What the formula gives in float64, on the host."""
    with (
        jax.enable_x64(True),
        jax.default_device(jax.local_devices(backend="cpu")[0]),
    ):
        return _attended(_one_block(config, "manual", "float64"), cases, rows)


def _attended(
    model: gpt1.OpenAIGPTModel, cases: dict[str, Case], rows: int
) -> dict[str, list[np.ndarray]]:
    """The states and the gradient of every case, and the state of one query after a cache."""
    apply, params = gpt1.functional(model)

    @jax.jit
    def both(params: Any, ids: Any, mask: Any, at_tokens: Any) -> Any:
        def squares(params: Any) -> Any:
            states = apply(params, ids, mask).last_hidden_state
            # A layer norm fixes a state's norm, so its squares alone would have no gradient.
            weights = jnp.cos(jnp.arange(states.shape[-1], dtype=jnp.float32))
            summed = states.astype(at_least_float32(states.dtype)) @ weights
            return (summed**2 * at_tokens).sum(), states

        (_, states), gradients = jax.value_and_grad(squares, has_aux=True)(params)
        return states, gradients["h"]["0"]["attn"]["c_attn"]["kernel"]

    found: dict[str, list[np.ndarray]] = {}
    for name, (length, side) in cases.items():
        ids = work.random_ids(model.config, rows, length)
        mask = _mask(rows, length, side)
        at_tokens = np.ones((rows, length), np.float32) if mask is None else mask
        states, kernel = both(params, ids, mask, at_tokens.astype(np.float32))
        found[name] = [np.asarray(states)[at_tokens == 1], np.asarray(kernel)]
    tokens = max(length for length, _ in cases.values())
    return {**found, "one query": [_one_query(model, rows, tokens)]}


def _one_block(config: gpt1.OpenAIGPTConfig, backend: Any, dtype: str) -> gpt1.OpenAIGPTModel:
    model = gpt1.OpenAIGPTModel(config, rngs=work.seeded_rngs(), dtype=dtype, attention=backend)
    # Of weights as they are drawn, all scores are about 0, and a wrong mask would hardly show.
    kernel = model.h[0].attn.c_attn.kernel
    kernel.set_value(64 * kernel.get_value())
    return model


def _mask(rows: int, length: int, side: str | None) -> np.ndarray | None:
    if side is None:
        return None
    padding = np.arange(rows) * (length // (2 * rows))
    slots = np.arange(length)[None]
    if side == "right":
        return (slots < length - padding[:, None]).astype(np.int32)
    return (slots >= padding[:, None]).astype(np.int32)


def _one_query(model: gpt1.OpenAIGPTModel, rows: int, tokens: int) -> np.ndarray:
    """The state of one token after a left-padded prompt in a cache."""
    apply, params = gpt1.functional(model)
    ids = work.random_ids(model.config, rows, tokens)
    mask = _mask(rows, tokens, "left")
    assert mask is not None
    cache = Cache.empty(model.config, rows, tokens, model.dtype)
    first = apply(params, ids[:, :-1], mask[:, :-1], positions_from_mask=True, cache=cache)
    out = apply(params, ids[:, -1:], mask[:, -1:], positions_from_mask=True, cache=first.cache)
    return np.asarray(out.last_hidden_state)


def generated_ids(bench: Bench) -> Result:
    """Compare the ids of a ragged batch with the host's: greedy, with beams, and sampled."""
    expected = bench.reference(TEXTS)
    found = work.texts(bench.load(precision=EXACT), bench.sizes)
    rows: list[Row] = []
    for way, texts in found.items():
        alike = [a == b for a, b in zip(texts, expected[way], strict=True)]
        firsts = [
            next((i for i, (a, b) in enumerate(zip(x, y, strict=False)) if a != b), None)
            for x, y in zip(texts, expected[way], strict=True)
        ]
        first = min((i for i in firsts if i is not None), default=None)
        rows.append({"": way, "rows": len(alike), "equal": sum(alike), "first difference": first})
    passed = all(row["rows"] == row["equal"] for row in rows)
    lengths = ", ".join(map(str, bench.sizes.prompts))
    note = f"Prompts of {lengths} ids and {bench.sizes.new} new ones, float32 at {EXACT!r}."
    return Result(rows, passed, note)


def training(bench: Bench) -> Result:
    """Compare the losses of training steps with the host's."""
    expected = np.asarray(bench.reference(LOSSES))
    found = {
        f"float32, precision {EXACT}": bench.load(precision=EXACT),
        "bfloat16": bench.load(dtype="bfloat16", param_dtype="float32"),
    }
    rows: list[Row] = []
    for name, model in found.items():
        losses = np.asarray(work.training_losses(model, bench.sizes))
        apart = float(np.abs(losses / expected - 1).max())
        rows.append(
            {"": name, "first": losses[0], "last": losses[-1], "relative difference": apart}
        )
    exact, half = (row["relative difference"] for row in rows)
    passed = exact <= LOSS_TOLERANCE and half <= COARSE
    note = f"{work.STEPS} steps of AdamW; passes where float32 differs by at most "
    note += f"{LOSS_TOLERANCE:g} from the host, and bfloat16 by {COARSE:g}."
    return Result(rows, passed, note)


def exported(bench: Bench) -> Result:
    """Compare the program that ``gpt1 export`` writes with the model."""
    if importlib.util.find_spec("flatbuffers") is None:  # which JAX does not bring
        raise LeaveOutError("flatbuffers is not installed")
    model = bench.load(precision=EXACT)
    program = jax.export.deserialize(export_forward(model, [bench.platform]).serialize())
    weights = _saved(bench)
    ids = work.random_ids(bench.config, *bench.sizes.logits)
    found = jax.jit(program.call)(weights, ids, np.ones_like(ids))["logits"]
    apply, params = gpt1.functional(model)
    error = work.relative_error(np.asarray(found), np.asarray(apply(params, ids).logits))
    size = len(program.mlir_module_serialized)
    row: Row = {"": bench.platform, "relative RMS error": error, "bytes of StableHLO": size}
    return Result([row], error <= 1e-6)


def _saved(bench: Bench) -> dict[str, jax.Array]:
    from safetensors.numpy import load_file

    return jax.device_put(load_file(bench.checkpoint / "model.safetensors"))


def donation(bench: Bench) -> Result:
    """Check that a cache that goes in comes out in the same memory."""
    apply, params = gpt1.functional(bench.load())
    rows, length = bench.sizes.logits
    ids = jax.device_put(work.random_ids(bench.config, rows, 1))
    cache = apply(params, ids, cache=Cache.empty(bench.config, rows, length)).cache

    def places(cache: Cache) -> set[int]:
        return {array.unsafe_buffer_pointer() for array in (*cache.keys, *cache.values)}

    before, live = places(cache), len(jax.live_arrays())
    out = apply(params, ids, cache=cache)
    del cache
    after, grown = places(out.cache), len(jax.live_arrays()) - live
    # The logits are new, and nothing else.
    row: Row = {"": "cache", "arrays": len(before), "in place": len(before & after)}
    return Result([{**row, "more live arrays": grown}], before == after and grown <= 1)


def run_ahead(bench: Bench) -> Result:
    """Check that a user's own decoding loop never waits for the device."""
    apply, params = gpt1.functional(bench.load())
    rows, _ = bench.sizes.logits
    token = jax.device_put(work.random_ids(bench.config, rows, 1))
    cache = Cache.empty(bench.config, rows, min(256, bench.config.n_positions))
    likeliest = jax.jit(lambda logits: jnp.argmax(logits, axis=-1).astype(jnp.int32))

    def steps(number: int, token: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        for _ in range(number):
            out = apply(params, token, cache=cache)
            token, cache = likeliest(out.logits), out.cache
        return token, cache

    token, cache = steps(2, token, cache)
    jax.block_until_ready(token)
    number = work.STEPS
    begin = time.perf_counter()
    with jax.transfer_guard_device_to_host("disallow"):
        token, cache = steps(number, token, cache)
    called = time.perf_counter() - begin
    jax.block_until_ready(token)
    done = time.perf_counter() - begin
    row: Row = {
        "": "a step",
        "milliseconds to call": 1e3 * called / number,
        "milliseconds to finish": 1e3 * done / number,
    }
    note = f"{number} steps of `apply` under transfer_guard_device_to_host('disallow')"
    if bench.platform == "cpu":
        return Result([row], None, f"{note}, which proves nothing on a CPU.")
    return Result([row], True, f"{note}.")


def mesh(bench: Bench) -> Result:
    """Compare the logits of a model that is sharded over all devices with those of one device."""
    number = len(jax.devices())
    if number == 1:
        raise LeaveOutError("there is one device")
    rows, tokens = bench.sizes.logits
    ids = work.random_ids(bench.config, max(rows, number), tokens)
    apply, params = gpt1.functional(bench.load(precision=EXACT))
    expected = np.asarray(apply(params, ids).logits)
    found: list[Row] = []
    for name in (f"data={number}", f"fsdp={number}", f"data={number // 2},tensor=2"):
        model = bench.load(precision=EXACT)
        try:
            shard_model(model, make_mesh(name))
        except ValueError as error:
            found.append({"": name, "left out": str(error)})
            continue
        apply, params = gpt1.functional(model)
        logits = np.asarray(apply(params, ids).logits)
        found.append({"": name, "relative RMS error": work.relative_error(logits, expected)})
    errors = [row["relative RMS error"] for row in found if "relative RMS error" in row]
    if not errors:
        raise LeaveOutError(f"no mesh of {number} devices divides the model")
    return Result(found, bool(np.max(errors) <= 1e-6))


def torch(bench: Bench) -> Result:
    """Set torch's errors on the same device beside ours, from the same float64 logits."""
    exact = bench.reference(FLOAT64)
    ids = work.random_ids(bench.config, *bench.sizes.logits)
    file = bench.folder / "torch.npy"
    rows: list[Row] = []
    for name, dtype, tf32 in (
        ("torch, float32", "float32", False),
        ("torch, float32 with TF32 allowed", "float32", True),
        ("torch, bfloat16", "bfloat16", False),
    ):
        loss = bench.torch(do="logits", ids=ids.tolist(), dtype=dtype, tf32=tf32, file=str(file))
        logits = np.load(file)
        alike = logits.argmax(-1) == exact["logits"].argmax(-1)
        rows.append(
            {
                "": name,
                "logits, relative RMS error": work.relative_error(logits, exact["logits"]),
                "greatest difference": float(np.abs(logits - exact["logits"]).max()),
                "same likeliest token": float(alike.mean()),
                "loss, relative error": abs(loss / float(exact["loss"]) - 1),
            }
        )
    ours = work.logits_and_gradients(bench.load(precision=EXACT), ids)
    error = work.relative_error(ours["logits"], exact["logits"])
    rows.append({"": f"gpt1-jax, float32, {EXACT}", "logits, relative RMS error": error})
    passed = error <= TIMES_THE_HOST * rows[0]["logits, relative RMS error"]
    note = f"Passes where ours at {EXACT!r} is at most {TIMES_THE_HOST:g} times torch's error."
    return Result(rows, passed, note)
