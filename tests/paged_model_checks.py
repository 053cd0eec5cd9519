"""A whole model over our kernels and recorded steps; run as a program, in Triton's interpreter."""

import torch
from tiny import tiny_model
from torch import Tensor

from dbgpt_guanaco.engine import attention
from dbgpt_guanaco.engine.attention import KVCache, Span
from dbgpt_guanaco.engine.cuda_graphs import (
    CudaRecorder,
    DecodeBatch,
    DecodeGraphs,
    record_nothing,
)
from dbgpt_guanaco.engine.kernels.attend import Places, TritonAttention, places_of

BLOCK = 8
PROMPTS = ([1, 5, 9], [1, *range(7, 27)], [1, 30])
TABLES = ([4, 9], [2, 0, 7, 11], [6, 1])
NEW_TOKENS = 6


class Model:
    """A tiny LLaMA whose attention is ours."""

    def __init__(self, device: torch.device) -> None:
        attention.register()
        self.model = tiny_model(64).to(device)
        self.cache = KVCache([(2, 8)] * 2, 12, BLOCK, torch.float32, device)
        self.device = device

    def expected(self, ids: list[int]) -> Tensor:
        """Logits of a text's last token, by transformers' own attention."""
        self.model.set_attn_implementation("sdpa")
        logits: Tensor = self.model(torch.tensor([ids], device=self.device), use_cache=False).logits
        self.model.set_attn_implementation(attention.NAME)
        return logits[0, -1]

    def forward(self, ids: Tensor, positions: Tensor, places: Places) -> Tensor:
        self.model.set_attn_implementation(attention.NAME)
        attend = TritonAttention(self.cache, places)
        output = self.model(ids[None], position_ids=positions[None], use_cache=False, attend=attend)
        logits: Tensor = output.logits[0]
        return logits

    def mixed(self, texts: list[list[int]], counts: list[int]) -> Tensor:
        """Compute the last so many tokens of each text in one pass → each one's last logits."""
        spans, start = [], 0
        for text, count, table in zip(texts, counts, TABLES, strict=True):
            spans.append(Span(start, count, len(text), table))
            start += count
        places = [range(len(t) - c, len(t)) for t, c in zip(texts, counts, strict=True)]
        ids = [text[p] for text, own in zip(texts, places, strict=True) for p in own]
        slots = [
            table[p // BLOCK] * BLOCK + p % BLOCK
            for table, own in zip(TABLES, places, strict=True)
            for p in own
        ]
        positions = torch.tensor([p for own in places for p in own], device=self.device)
        where = places_of(spans, torch.tensor(slots, device=self.device))
        logits = self.forward(torch.tensor(ids, device=self.device), positions, where)
        return logits[[s.start + s.count - 1 for s in spans]]

    def step(self, batch: DecodeBatch) -> Tensor:
        slots = batch.slots(BLOCK)
        places = Places(slots, batch.lengths, batch.block_tables, decodes=len(slots))
        return self.forward(batch.input_ids, batch.positions(), places)


@torch.inference_mode()
def check_model(device: torch.device) -> None:
    """Prompts, prompts in pieces beside a decoding sequence, then recorded decode steps."""
    model = Model(device)
    record = CudaRecorder() if device.type == "cuda" else record_nothing
    graphs = DecodeGraphs(model.step, largest=3, table_blocks=4, device=device, record=record)
    texts = [list(prompt) for prompt in PROMPTS]
    model.mixed([texts[0], texts[1][:9], texts[2]], [3, 9, 2])
    # The first one decodes while the second one's prompt is not done, and one takes two tokens.
    texts[0].append(40)
    texts[2] += [41, 42]
    _compare(model.mixed(texts, [1, len(texts[1]) - 9, 2]), model, texts)
    for step in range(NEW_TOKENS):
        rows = [2, 0, 1] if step % 2 else [1, 0]
        for row in rows:
            texts[row].append((7 * row + 11 * step) % 64)
        chosen = [texts[row] for row in rows]
        newest = torch.tensor([text[-1] for text in chosen], device=device)
        lengths, tables = [len(text) for text in chosen], [TABLES[row] for row in rows]
        _compare(graphs.run(newest, lengths, tables), model, chosen)


def _compare(found: Tensor, model: Model, texts: list[list[int]]) -> None:
    for row, text in zip(found, texts, strict=True):
        expected = model.expected(text)
        error = float((row - expected).abs().max() / expected.abs().max())
        assert error < 1e-4, f"relative error {error:.2e} at length {len(text)}"


if __name__ == "__main__":
    check_model(torch.device("cpu"))
