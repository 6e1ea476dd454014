"""Collectives in XLA's text, as its compilers for CPU, GPU and TPU write it."""

import pytest

from gpt1_jax.estimate.collectives import Collective, collectives

TEXT = """
HloModule jit_step
  %p = f32[8,4]{1,0} parameter(0)
  %all-reduce.1 = f32[8,4]{1,0:T(8,128)} all-reduce(%p), channel_id=1, replica_groups=[1,4]<=[4]
  %ag = bf16[16,4]{1,0} all-gather(%x), replica_groups={{0,1},{2,3}}, dimensions={0}
  %both = (f32[2]{0}, f32[3]{0}) all-reduce(%a, %b), replica_groups=mesh['x'=2,'y'=4] {'y'}
  %start = (f32[4]{0}, f32[16]{0}) all-gather-start(%c), replica_groups=[2,4]<=[8]
  %done = f32[16]{0} all-gather-done(%start)
  %rs = f32[2,4]{1,0} reduce-scatter(%d), replica_groups=[1,4]<=[4], dimensions={0}
  ROOT %cp = f32[10]{0} collective-permute(%e), source_target_pairs={{0,1},{1,0}}
"""


def test_collectives_parses_every_kind_and_group_format() -> None:
    found = {each.kind: each for each in collectives(TEXT, devices=8)}
    assert found["all-reduce"] == Collective(
        "all-reduce", 2, 128 + 20, 128 * 2 * 3 / 4 + 20 * 2 * 3 / 4
    )
    assert found["all-gather"] == Collective("all-gather", 2, 128 + 64, 128 / 2 + 64 * 3 / 4)
    assert found["reduce-scatter"] == Collective("reduce-scatter", 1, 128, 128 * 3 / 4)
    assert found["collective-permute"] == Collective("collective-permute", 1, 40, 40)
    assert len(found) == 4


def test_collectives_without_groups_span_all_devices() -> None:
    (found,) = collectives("  %r = f32[4]{0} all-reduce(%p), to_apply=%add", devices=4)
    assert found == Collective("all-reduce", 1, 16, 16 * 2 * 3 / 4)


@pytest.mark.parametrize("text", ["", "%p = f32[8] add(%a, %b)", "calls all-reduce( nowhere"])
def test_collectives_is_empty_without_communication(text: str) -> None:
    assert collectives(text, devices=4) == []
