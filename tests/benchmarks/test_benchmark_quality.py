"""The arithmetic of quality, with known answers, and a whole run over a tiny model."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes import functional
from tiny_models import make_bpe_tokenizer, make_model
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from typer.testing import CliRunner

from benchmarks import quality
from benchmarks.quality_scores import measure, score, windows
from benchmarks.quality_ways import STORAGES, WAYS, linear_int4, sizes_of
from dbgpt_guanaco.engine.kernels import compiled

V = 7


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices this small are done before a second thread has woken up."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Wide enough for the AVX-512 kernels to pack.
    folder = tmp_path_factory.mktemp("quality") / "tiny"
    make_model(folder, hidden_size=128, intermediate_size=192, head_dim=32)
    return make_bpe_tokenizer(folder)


def test_every_token_but_the_first_is_scored_once_and_sees_enough_before_it() -> None:
    for tokens in range(2, 40):
        for size in range(2, 12):
            for stride in range(1, size):
                scored = []
                for window in windows(tokens, size, stride):
                    assert 0 <= window.begin < window.end <= tokens
                    assert window.end - window.begin <= size
                    for token in range(window.scored, window.end):
                        before = token - window.begin
                        assert before == token or before >= size - stride
                        scored.append(token)
                assert scored == list(range(1, tokens))


@pytest.mark.parametrize(("tokens", "size", "stride"), [(1, 4, 2), (9, 4, 4), (9, 4, 0)])
def test_windows_that_would_leave_tokens_out_are_refused(
    tokens: int, size: int, stride: int
) -> None:
    with pytest.raises(ValueError, match="token"):
        list(windows(tokens, size, stride))


def counting(ids: Tensor) -> Tensor:
    """A model that gives probability 1/2 to the number after each token, the rest to the others."""
    p = torch.full((len(ids), V), 0.5 / (V - 1))
    p[torch.arange(len(ids)), (ids + 1) % V] = 0.5
    return p.log()


def test_a_text_that_a_model_half_expects_has_perplexity_two() -> None:
    texts = [torch.arange(11) % V, torch.arange(30) % V]

    found = measure(score(counting, texts, 5, 2), score(counting, texts, 5, 2))

    assert found.perplexity == pytest.approx(2)
    assert found.perplexities == pytest.approx((2, 2))
    assert (found.agreement, found.loss_change, found.kl) == (1, 0, 0)


def test_a_model_without_an_opinion_has_the_vocabulary_as_perplexity_and_a_known_divergence() -> (
    None
):
    texts = [torch.arange(31) % V]
    reference = score(counting, texts, 8, 4)

    found = measure(
        score(lambda ids: torch.zeros(len(ids), V), texts, 8, 4, reference=reference), reference
    )

    assert found.perplexity == pytest.approx(V)
    assert found.loss_change == pytest.approx(math.log(V / 2))
    assert found.loss_change_error == pytest.approx(0, abs=1e-6)
    entropy = -(0.5 * math.log(0.5) + 0.5 * math.log(0.5 / (V - 1)))
    assert found.kl == pytest.approx(math.log(V) - entropy, rel=1e-5)
    # Its first choice is always 0, which follows one token in seven: 4 of 30.
    assert found.agreement == pytest.approx(4 / 30)


def test_texts_weigh_as_much_as_they_have_tokens() -> None:
    wrong = torch.zeros(5, dtype=torch.long)
    expected = (10 * math.log(2) + 4 * math.log(2 * (V - 1))) / 14
    scores = score(counting, [torch.arange(11) % V, wrong], 4, 2)

    assert measure(scores, scores).perplexity == pytest.approx(math.exp(expected))


def test_a_window_that_holds_the_text_gives_transformers_own_loss(model: Path) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    ids = torch.randint(512, (60,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = float(loaded(ids[None], labels=ids[None]).loss)

    scores = score(lambda some: loaded(some[None]).logits[0], [ids], 64, 32)

    assert measure(scores, scores).perplexity == pytest.approx(math.exp(expected), rel=1e-5)


def test_linear_int4_has_fifteen_even_steps_of_each_block() -> None:
    steps = torch.arange(-7, 8).repeat(5)[:64].float()
    weight = torch.stack([steps * 0.25, steps * 2])

    assert torch.equal(linear_int4(weight), weight)
    moved = weight + torch.tensor([[0.1], [0.8]]) * (weight.abs() < weight.max(1)[0][:, None])
    assert torch.equal(linear_int4(moved), weight)
    assert torch.equal(linear_int4(torch.zeros(1, 64)), torch.zeros(1, 64))


@pytest.mark.parametrize(
    ("name", "bits"),
    [("fp32", 32), ("bf16", 16), ("Int4", 4.5), ("FP4", 4.5), ("NF4", 4.5), ("NF4 + DQ", 4.127)],
)
def test_bits_a_weight_are_those_of_the_paper(model: Path, name: str, bits: float) -> None:
    assert sizes_of(model).bits_a_weight(name) == pytest.approx(bits, abs=5e-4)


@pytest.mark.parametrize("name", ["NF4 + DQ", "NF4", "FP4"])
def test_the_bits_are_those_of_the_tensors_that_are_stored(name: str) -> None:
    config: Any = STORAGES[name].config
    _, state = functional.quantize_4bit(
        torch.randn(512, 2048, generator=torch.Generator().manual_seed(0)),
        blocksize=64,
        quant_type=config["bnb_4bit_quant_type"],
        compress_statistics=config["bnb_4bit_use_double_quant"],
    )
    constants = state.absmax.nbytes + (state.state2.absmax.nbytes if state.nested else 0)

    assert STORAGES[name].bits(512, 2048) == 8 * (512 * 2048 / 2 + constants)


def test_int8_has_a_constant_for_each_output(model: Path) -> None:
    config = BitsAndBytesConfig(load_in_8bit=True)
    loaded = AutoModelForCausalLM.from_pretrained(model, quantization_config=config)
    layer: Any = loaded.model.layers[0].mlp.down_proj

    stored = 8 * (layer.weight.nbytes + layer.weight.SCB.nbytes)

    assert STORAGES["int8"].bits(*layer.weight.shape) == stored


@pytest.fixture(scope="module")
def result(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("result")
    texts = folder / "texts"
    texts.mkdir()
    (texts / "one.txt").write_text("A guanaco lives in the mountains of South America. " * 3)
    (texts / "two.txt").write_text("SELECT 1;")
    options = ("--model", model, "--texts", texts, "--window", "32", "--stride", "16")
    done = CliRunner().invoke(quality.app, [*map(str, options), "--out", str(folder / "q.md")])
    assert done.exit_code == 0, done.output
    return folder / "q.md"


# Where bitsandbytes has no kernel for 4 bits, it restores weights and leaves the rest to torch.
FOUR_BITS = ("NF4 + DQ", "NF4", "FP4")
SAME = len(FOUR_BITS) if compiled.missing_cpu_flags("avx512_bf16") else 0


def test_a_run_measures_every_way_and_draws_it(result: Path) -> None:
    rows = json.loads(result.with_suffix(".json").read_text())["rows"]

    assert [tuple(row["way"].values()) for row in rows] == [
        (way.storage, way.arithmetic) for way in WAYS
    ]
    measured = {tuple(r["way"].values()): r["measured"] for r in rows if not r["note"]}
    assert len(measured) == sum(way.why_not() is None for way in WAYS)
    # Random weights say next to nothing, so every way is near the vocabulary's 512.
    assert all(300 < m["perplexity"] < 800 for m in measured.values())
    # But ways that differ do differ, and no way is the reference under another name.
    assert len({m["perplexity"] for m in measured.values()}) == len(measured) - SAME
    assert result.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    text = result.read_text()
    assert "![perplexity, agreement and bits](q.png)" in text
    assert "| NF4 + DQ | bitsandbytes | 4.127 |" in text


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--only", "NF3"], "unknown: NF3"),
        (["--window", "8", "--stride", "8"], "not below the window"),
    ],
)
def test_what_cannot_be_measured_is_refused(model: Path, arguments: list[str], told: str) -> None:
    done = CliRunner().invoke(quality.app, ["--model", str(model), *arguments])

    assert done.exit_code == 2
    assert told in done.output
