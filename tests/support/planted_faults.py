"""Plant ten typical faults, one at a time, and print the test that catches each.

    python tests/support/planted_faults.py [CHECKOUT]

Each fault is planted in a copy of the checkout, and the tests of that part run until one fails. The
exit status is 1 if a fault goes unnoticed.
"""

import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PARITY = ("tests/gpt1_jax/test_parity.py",)
GENERATION = ("tests/gpt1_jax/generation/test_parity.py",)
CONVERSION = ("tests/conversion",)


@dataclasses.dataclass(frozen=True)
class Fault:
    """A replacement of one text, which occurs once in a file, by a wrong one."""

    name: str
    file: str
    right: str
    wrong: str
    tests: tuple[str, ...] = PARITY


FAULTS = (
    Fault(
        "the exact GELU for the tanh form",
        "gpt1_jax/model.py",
        '"gelu": gelu_new,',
        '"gelu": functools.partial(jax.nn.gelu, approximate=False),',
    ),
    Fault(
        "the MLP's sum taken with the block's input",
        "gpt1_jax/model.py",
        'site("mlp_sum", n + self.mlp(n, mlp_key))',
        'site("mlp_sum", x + self.mlp(n, mlp_key))',
    ),
    Fault(
        "layer norms with Flax's own epsilon",
        "gpt1_jax/model.py",
        "epsilon=config.layer_norm_epsilon,",
        "",
    ),
    Fault(
        "later keys masked out",
        "gpt1_jax/nn/attention.py",
        "CAUSAL_MASK_VALUE = -1e4",
        "CAUSAL_MASK_VALUE = -math.inf",
    ),
    Fault(
        "a mean over ignored labels too",
        "gpt1_jax/nn/losses.py",
        "count = counted.sum() if",
        "count = jnp.asarray(counted.size) if",
    ),
    Fault(
        "the language model's loss not shifted",
        "gpt1_jax/nn/losses.py",
        "return cross_entropy(logits[..., :-1, :], labels[..., 1:]",
        "return cross_entropy(logits[..., 1:, :], labels[..., 1:]",
    ),
    Fault(
        "a repetition penalty that raises negative logits",
        "gpt1_jax/generation/processors.py",
        "jnp.where(logits < 0, logits * self.penalty, logits / self.penalty)",
        "logits / self.penalty",
        GENERATION,
    ),
    Fault(
        "a length penalty that does not count the last token",
        "gpt1_jax/generation/beam.py",
        "log_prob / length.astype(jnp.float32) **",
        "log_prob / jnp.maximum(length - 1, 1).astype(jnp.float32) **",
        GENERATION,
    ),
    Fault(
        "a layer norm's weight and bias exchanged",
        "conversion/layout.py",
        """(*module, "scale"), shape, openai_shape=shape),
        ParamSpec(_name(module, "bias"), (*module, "bias"), shape""",
        """(*module, "bias"), shape, openai_shape=shape),
        ParamSpec(_name(module, "bias"), (*module, "scale"), shape""",
    ),
    Fault(
        "OpenAI's two layer norms of a block exchanged",
        "conversion/layout.py",
        """        rows += _layer_norm((*block, "ln_1"), E)
        rows += _conv1d((*block, "mlp", "c_fc"), E, 4 * E)
        rows += _conv1d((*block, "mlp", "c_proj"), 4 * E, E)
        rows += _layer_norm((*block, "ln_2"), E)""",
        """        rows += _layer_norm((*block, "ln_2"), E)
        rows += _conv1d((*block, "mlp", "c_fc"), E, 4 * E)
        rows += _conv1d((*block, "mlp", "c_proj"), 4 * E, E)
        rows += _layer_norm((*block, "ln_1"), E)""",
        CONVERSION,
    ),
)


def first_failure(fault: Fault, checkout: Path) -> str | None:
    """Plant a fault in a copy and return the test that fails first; None where none does."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "checkout"
        shutil.copytree(checkout, copy, ignore=shutil.ignore_patterns(".git", ".*", "*.egg-info"))
        file = copy / fault.file
        text = file.read_text()
        if text.count(fault.right) != 1:
            sys.exit(f"{fault.name}: {fault.file} must contain {fault.right!r} exactly once")
        file.write_text(text.replace(fault.right, fault.wrong))
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-m", "", "-x", "-q", "--tb=no", *fault.tests],
            cwd=copy,
            # The copy stands before an installed package; the same examples every time.
            env={**os.environ, "PYTHONPATH": str(copy), "CI": "true"},
            capture_output=True,
            text=True,
        )
    failures = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if done.returncode not in (0, 1) or bool(failures) != (done.returncode == 1):
        sys.exit(done.stdout + done.stderr)
    return failures[0].split(" - ")[0].split(" ", 1)[1] if failures else None


def main() -> None:
    """Plant each fault, and print what caught it."""
    checkout = Path(sys.argv[1] if sys.argv[1:] else Path(__file__).parents[2])
    unnoticed = 0
    for fault in FAULTS:
        found = first_failure(fault, checkout)
        unnoticed += found is None
        print(f"{fault.name}: {found or 'NOT CAUGHT'}", flush=True)
    sys.exit(unnoticed > 0)


if __name__ == "__main__":
    main()
