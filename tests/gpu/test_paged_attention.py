"""The kernels of paged attention on a real device: the checks of the interpreter, and graphs."""

import pytest
import torch
from paged_attention_checks import CHECKS, DTYPES, Case, Pass, make_pass
from paged_model_checks import check_model

from dbgpt_guanaco.engine.kernels.paged_attention import decode_scratch, write_kv

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]
DEVICE = torch.device("cuda")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("check", CHECKS)
def test_a_check_holds_on_the_device(check: str, dtype: str) -> None:
    CHECKS[check](DTYPES[dtype], DEVICE)


def test_a_model_over_kernels_and_graphs_gives_the_logits_of_transformers() -> None:
    check_model(DEVICE)


def captured(made: Pass, out: torch.Tensor) -> torch.cuda.CUDAGraph:
    scratch = decode_scratch(made.queries, made.block_tables, made.case.block_size, None)
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call] # torch leaves it so
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        made.decoded(out=out, scratch=scratch)  # compiles, which cannot be captured
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made.decoded(out=out, scratch=scratch)
    return graph


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_replay_is_what_an_eager_call_gives(dtype: torch.dtype) -> None:
    """Bit by bit, for lengths and tables that the graph has not been captured with."""
    lengths = (2000, 17, 640, 1)
    made = make_pass(Case((1,) * 4, lengths, heads=32, kv_heads=8, head_size=128), dtype, DEVICE)
    replayed = torch.empty_like(made.queries)
    graph = captured(made, replayed)

    for rows in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 1, 0, 3]):
        for static in (made.queries, made.lengths, made.block_tables):
            static.copy_(static[rows])
        made.lengths[1] -= 1
        made.lengths[3] = 0  # a padding row
        replayed.fill_(torch.nan)
        graph.replay()
        assert torch.equal(replayed, made.decoded())


def test_writing_can_be_captured() -> None:
    keys, values = (torch.zeros(8, 64, 128, dtype=torch.bfloat16, device=DEVICE) for _ in "kv")
    new = torch.randn(2, 8, 128, dtype=torch.bfloat16, device=DEVICE)
    slots = torch.tensor([-1, -1], device=DEVICE)
    write_kv(keys, values, new, new, slots)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        write_kv(keys, values, new, new, slots)

    graph.replay()
    assert not keys.any()
    slots.copy_(torch.tensor([63, 5]))
    graph.replay()
    assert torch.equal(keys[:, [63, 5]], new.transpose(0, 1))
    assert torch.equal(values, keys)
