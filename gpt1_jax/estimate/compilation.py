"""Compile for a machine that need not be here: run as a process of its own, with its environment.

``python -m gpt1_jax.estimate.compilation FILE`` reads a request, a JSON object in a line, from
standard input, and writes its answer to the file. It ends, its work done or not, when that input
does.
"""

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies

from gpt1_jax.config import OpenAIGPTConfig
from gpt1_jax.estimate.collectives import collectives
from gpt1_jax.estimate.launches import launches
from gpt1_jax.estimate.programs import program
from gpt1_jax.estimate.targets import H100, Target, parse_target
from gpt1_jax.nn.partitioning import DATA
from gpt1_jax.sharding.mesh import make_mesh


def devices(target: Target) -> list[Any]:
    """Return the devices of a machine, to compile for.

    Raises:
        ValueError: the compiler knows no such machine.
    """
    try:
        if target.compiler == "tpu":
            topology = topologies.get_topology_desc(platform="tpu", topology_name=target.name)
        elif target.compiler == "cuda":
            topology = topologies.get_topology_desc(
                "h100", "cuda", topology="1x1x1", target_config=H100
            )
        else:
            return jax.devices()
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"XLA cannot compile for {target.name}: {error}") from None
    return list(topology.devices)


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Compile one program and return what the compiler tells of it.

    Args:
        request: ``machine``, ``mesh``, ``config``, and the arguments of ``programs.program``.

    Returns:
        bytes a device of ``arguments``, ``outputs``, ``donated`` (outputs that lie in arguments)
        and ``temporaries``; ``flops`` and ``bytes`` that it reads and writes, a device;
        ``collectives``; ``launches``; ``tokens`` of one call on all devices. Or ``oom_message``:
        why the compiler found no room for it.
    """
    target = parse_target(request["machine"])
    found = devices(target)
    mesh = make_mesh(request["mesh"] or f"{DATA}={len(found)}", found)
    chosen = program(
        request["program"],
        OpenAIGPTConfig.from_dict(request["config"]),
        mesh,
        rows=request["rows"],
        length=request["length"],
        dtype=request["dtype"],
        remat=request["remat"],
        attention=request["attention"],
    )
    try:
        compiled: Any = chosen.run.lower(*chosen.arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {"oom_message": str(error).splitlines()[0]}
    memory = compiled.memory_analysis()
    text = compiled.as_text()
    costs = compiled.cost_analysis() or {}  # XLA's GPU compiler does not tell
    return {
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "donated": memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "flops": max(costs.get("flops", 0.0), chosen.flops / len(found)),
        "bytes": costs.get("bytes accessed", 0.0),
        "collectives": [vars(each) for each in collectives(text, len(found))],
        "launches": vars(launches(text)),
        "tokens": chosen.tokens,
    }


def _end_with_the_input() -> None:
    os.read(sys.stdin.fileno(), 1)  # sys.stdin's own read holds a lock that an exit waits for
    os._exit(1)


if __name__ == "__main__":
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_the_input, daemon=True).start()
    try:
        answer = measure(request)
    except ValueError as error:
        answer = {"error": str(error)}
    Path(sys.argv[1]).write_text(json.dumps(answer), encoding="utf-8")
