"""A whole model over our kernels and recorded steps; run as a program, in Triton's interpreter."""

from typing import Any

import torch
from tiny import tiny_model
from torch import Tensor

from dbgpt_guanaco.engine import attention
from dbgpt_guanaco.engine.attention import KVCache, Span
from dbgpt_guanaco.engine.cuda_graphs import CudaRecorder, DecodeGraphs, record_nothing
from dbgpt_guanaco.engine.lora_layers import LoraLayers
from dbgpt_guanaco.engine.passes import RecordedPasses, TransformersPasses

BLOCK = 8
PROMPTS = ([1, 5, 9], [1, *range(7, 27)], [1, 30])
TABLES = ([4, 9], [2, 0, 7, 11], [6, 1])
NEW_TOKENS = 6


class Model:
    """A tiny LLaMA, and the passes over it that the engine uses on a GPU."""

    def __init__(self, device: torch.device) -> None:
        attention.register()
        self.device, self.model = device, tiny_model(64).to(device)
        cache = KVCache([(2, 8)] * 2, 12, BLOCK, torch.float32, device)
        # Recording computes a step of padding, by our attention.
        self.model.set_attn_implementation(attention.NAME)
        eager = TransformersPasses(self.model, cache, LoraLayers(self.model), has_kernels=True)
        self.replays = 0
        graphs = DecodeGraphs(
            eager.decode,
            largest=3,
            table_blocks=4,
            device=device,
            record=CudaRecorder() if device.type == "cuda" else record_nothing,
        )
        run = graphs.run

        def counted(*args: Any) -> Tensor:
            self.replays += 1
            return run(*args)

        graphs.run = counted  # type: ignore[assignment, method-assign] # a spy
        self.passes = RecordedPasses(eager, graphs)

    def expected(self, ids: list[int]) -> Tensor:
        """Logits of a text's last token, by transformers' own attention."""
        self.model.set_attn_implementation("sdpa")
        logits: Tensor = self.model(torch.tensor([ids], device=self.device), use_cache=False).logits
        return logits[0, -1]

    def last(self, rows: list[int], texts: list[list[int]], counts: list[int]) -> Tensor:
        """Compute the last so many tokens of some texts in one pass → each one's last logits.

        As in the engine's steps, None are wanted by number where everybody decodes.
        """
        self.model.set_attn_implementation(attention.NAME)
        spans, start = [], 0
        for row, count in zip(rows, counts, strict=True):
            spans.append(Span(start, count, len(texts[row]), TABLES[row]))
            start += count
        ids = [i for row, count in zip(rows, counts, strict=True) for i in texts[row][-count:]]
        ends = [span.start + span.count - 1 for span in spans]
        wanted = None if set(counts) == {1} else ends
        return self.passes.compute(torch.tensor(ids, device=self.device), spans, wanted)


@torch.inference_mode()
def check_model(device: torch.device) -> None:
    """Prompts, prompts in pieces beside a decoding sequence, then recorded decode steps."""
    model = Model(device)
    texts = [list(prompt) for prompt in PROMPTS]
    parts = [texts[0], texts[1][:9], texts[2]]
    model.last([0, 1, 2], parts, [3, 9, 2])
    # The first one decodes while the second one's prompt is not done, and one takes two tokens.
    texts[0].append(40)
    texts[2] += [41, 42]
    found = model.last([0, 1, 2], texts, [1, len(texts[1]) - 9, 2])
    _compare(found, model, texts)
    assert model.replays == 0
    for step in range(NEW_TOKENS):
        rows = [2, 0, 1] if step % 2 else [1, 0]
        for row in rows:
            texts[row].append((7 * row + 11 * step) % 64)
        found = model.last(rows, texts, [1] * len(rows)).clone()
        _compare(found, model, [texts[row] for row in rows])
    assert model.replays == NEW_TOKENS


def _compare(found: Tensor, model: Model, texts: list[list[int]]) -> None:
    for row, text in zip(found, texts, strict=True):
        expected = model.expected(text)
        error = float((row - expected).abs().max() / expected.abs().max())
        assert error < 1e-4, f"relative error {error:.2e} at length {len(text)}"


if __name__ == "__main__":
    check_model(torch.device("cpu"))
