"""LoRAs that fit their base and LoRAs that do not, told from headers."""

import json
from pathlib import Path

import pytest
import torch
from tiny_models import lora_weights, make_lora, make_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from dbgpt_guanaco.adapters.cards import refuse_other_base
from dbgpt_guanaco.doctor.__main__ import run_check
from dbgpt_guanaco.doctor.findings import Finding
from dbgpt_guanaco.doctor.setup import Setup
from dbgpt_guanaco.settings import EngineSettings, ModelSettings, Settings

# peft asks transformers for an attribute that has a new name.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)


@pytest.fixture(autouse=True)
def base() -> Path:
    return make_model(Path("models/base"))


def examined(lora: str | None = None, **loras: str) -> Finding:
    settings = Settings(
        model=ModelSettings(name="base", lora=lora),
        engine=EngineSettings(loras=tuple(loras.items())),
    )
    return run_check("dbgpt_guanaco.doctor.loras.loras", Setup(settings=settings))


def test_none_is_right() -> None:
    assert examined().text == "none are named"


def test_those_that_fit_are_told() -> None:
    make_lora(Path("models/one"))
    make_lora(Path("models/two"), kind="bin")

    assert examined("one", sql="two").text == "sql: 2 pairs fit; one: 2 pairs fit"


def test_one_for_a_wider_base_is_a_failure() -> None:
    make_lora(Path("models/wide"), lora_weights(width=96))
    make_lora(Path("models/good"))

    finding = examined(sql="wide", fr="good")

    assert finding.status == "failure"
    assert "sql: the LoRA in models/wide does not fit its base: size mismatch" in finding.text
    assert "fr" not in finding.text


def test_one_for_more_layers_is_a_failure() -> None:
    weights = lora_weights()
    more = {name.replace("layers.1", "layers.7"): t.clone() for name, t in weights.items()}
    make_lora(Path("models/deep"), more | weights)

    assert "layers that the base has not" in examined(sql="deep").text


def test_one_that_is_cut_short_is_a_failure() -> None:
    path = make_lora(Path("models/cut")) / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])

    assert "is cut short" in examined(sql="cut").text


def test_one_that_is_nowhere_is_a_failure() -> None:
    assert "no model 'no-such'" in examined(sql="no-such").text


def test_a_quantized_base_has_the_same_layers(base: Path) -> None:
    stored = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )
    model = AutoModelForCausalLM.from_pretrained(
        base, quantization_config=stored, device_map={"": "cpu"}
    )
    model.save_pretrained(base)  # before any forward, which may repack the weights
    make_lora(Path("models/one"))
    make_lora(Path("models/wide"), lora_weights(width=96))

    assert examined(sql="one").status == "ok"
    assert examined(sql="wide").status == "failure"


def test_one_that_was_trained_on_other_weights_is_a_failure(base: Path) -> None:
    lora = make_lora(Path("models/other"), base=str(base))
    card = {"base": {"name": "its-base", "fingerprint": "0" * 64}}
    (lora / "training.json").write_text(json.dumps(card))

    assert examined(sql="other").status == "failure"
    assert "was trained on its-base" in examined(sql="other").text


@pytest.mark.parametrize(
    ("named", "status"),
    [("org/base", "ok"), ("models/Base", "ok"), ("org/another-7b", "warning"), (None, "ok")],
)
def test_one_that_names_another_base_is_a_warning(named: str | None, status: str) -> None:
    make_lora(Path("models/foreign"), base=named)

    finding = examined(sql="foreign")
    assert finding.status == status
    assert status == "ok" or f"sql: it was made for {named!r}" in finding.text


@pytest.mark.parametrize(
    ("base", "is_told"),
    [
        ("hub/models--org--llama-7b/snapshots/0a1b", False),
        ("models/llama-7b-nf4", False),  # made by quantize
        ("models/open-llama-7b", True),
        ("models/llama-13b", True),
    ],
)
def test_a_base_is_known_by_its_own_name(
    base: str, is_told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    lora = make_lora(Path("models/foreign"), base="org/Llama-7b")
    quantized = Path("models/llama-7b-nf4")
    quantized.mkdir()
    (quantized / "quantize.json").write_text('{"source": "llama-7b"}')

    refuse_other_base(lora, Path(base))

    assert ("says that it is for 'org/Llama-7b'" in caplog.text) == is_told
