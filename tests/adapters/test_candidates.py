import json
import math
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import FakeHub, running
from huggingface_hub import constants
from tiny_models import lora_weights, make_lora, make_model, tiny_config

from dbgpt_guanaco.adapters.candidates import find_candidate, known_candidates
from dbgpt_guanaco.adapters.known import KNOWN_MODELS
from dbgpt_guanaco.adapters.shapes import read_shape, shape_of
from dbgpt_guanaco.errors import ModelLoadError, ModelNotFoundError
from dbgpt_guanaco.settings import ModelSettings


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with running(FakeHub({})) as served:
        template = served.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", served.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield served


def put(hub: FakeHub, name: str, folder: Path) -> None:
    """Let the hub have what is in a folder."""
    hub.files = {**hub.files, name: {path.name: path.read_bytes() for path in folder.iterdir()}}


def test_the_known_models_need_no_file_and_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {c.name: c for c in known_candidates(ModelSettings())}

    assert set(found) == set(KNOWN_MODELS)
    billions = {name: round(c.shape.parameters / 1e9, 2) for name, c in found.items()}
    assert billions["guanaco-7b"] == 6.74
    assert billions["guanaco-13b"] == billions["vicuna-13b"] == 13.02
    assert billions["guanaco-33b"] == billions["guanaco-33b-merged"] == 32.53
    assert billions["guanaco-65b"] == billions["guanaco-65b-merged"] == 65.29
    assert found["guanaco-7b"].lora_bytes > 0 == found["guanaco-33b-merged"].lora_bytes


def test_the_demo_model_known_by_heart_is_the_one_on_the_disk() -> None:
    by_heart = find_candidate("smollm2-135m-instruct", ModelSettings(models_dir=Path("nowhere")))
    root = Path(__file__).parent.parent.parent

    assert by_heart.known_from == "known sizes"
    assert by_heart.shape == read_shape(root / "models" / "smollm2-135m-instruct")


def test_a_folder_is_looked_at_before_what_is_known_by_heart() -> None:
    make_model(Path("models/guanaco-33b-merged"))

    found = find_candidate("guanaco-33b-merged", ModelSettings())

    assert found.shape == shape_of(tiny_config())
    assert found.known_from == "folder models/guanaco-33b-merged"


def test_a_lora_counts_beside_its_base() -> None:
    weights = lora_weights()
    make_model(Path("models/base"))
    make_lora(Path("models/mine"), weights, base="base")

    found = find_candidate("mine", ModelSettings())

    assert (found.name, found.base) == ("mine", "base")
    assert found.lora_bytes == sum(2 * t.numel() for t in weights.values())
    assert found.shape == shape_of(tiny_config())


def test_a_lora_whose_base_is_elsewhere_is_planned_by_the_bases_known_shape() -> None:
    make_lora(Path("mine"), base="huggyllama/llama-13b")

    assert find_candidate("mine", ModelSettings()).shape.layers == 40


def test_a_quantized_checkpoint_says_how_it_is_stored() -> None:
    folder = make_model(Path("stored"))
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (folder / "config.json").write_text(json.dumps(config))

    assert find_candidate("stored", ModelSettings()).stored == "int8"


def test_a_folder_that_is_cut_short_is_refused() -> None:
    file = make_model(Path("short")) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])

    with pytest.raises(ModelLoadError, match="cut short"):
        find_candidate("short", ModelSettings())


def test_a_name_that_is_nothing_is_told_where_it_was_looked_for() -> None:
    with pytest.raises(ModelNotFoundError, match=r"(?s)no model 'guanaco-8b'.*Did you mean"):
        find_candidate("guanaco-8b", ModelSettings())


def write_hollow(folder: Path, count: int, elements: int) -> None:
    """Write files whose weights are holes that take no room on the disk."""
    folder.mkdir()
    for number in range(count):
        size = 2 * elements // count
        header = {f"t{number}": {"dtype": "BF16", "shape": [size // 2], "data_offsets": [0, size]}}
        written = json.dumps(header).encode()
        path = folder / f"model-{number:05}-of-{count:05}.safetensors"
        path.write_bytes(struct.pack("<Q", len(written)) + written)
        os.truncate(path, 8 + len(written) + size)


def test_of_a_model_on_the_hub_only_config_and_headers_are_fetched(
    hub: FakeHub, tmp_path: Path
) -> None:
    parameters = math.ceil(shape_of(tiny_config(vocab_size=500_000)).parameters / 6) * 6
    write_hollow(tmp_path / "hollow", 3, parameters)
    tiny_config(vocab_size=500_000).save_pretrained(tmp_path / "hollow")
    (tmp_path / "hollow" / "consolidated.safetensors").write_bytes(b"the same once more")
    put(hub, "org/hollow", tmp_path / "hollow")

    found = find_candidate("org/hollow", ModelSettings())

    assert found.shape == shape_of(tiny_config(vocab_size=500_000))
    assert found.known_from == "the hub"
    assert sum(hub.sent.values()) < 500_000 < 2 * parameters
    assert set(hub.sent) == {
        "config.json",
        *(f"model-{n:05}-of-00003.safetensors" for n in range(3)),
    }
    assert not (tmp_path / "cache").exists()


def test_a_model_on_the_hub_whose_files_hold_too_little_is_refused(
    hub: FakeHub, tmp_path: Path
) -> None:
    make_model(tmp_path / "half")
    tiny_config(num_hidden_layers=4).save_pretrained(tmp_path / "half")
    put(hub, "org/half", tmp_path / "half")

    with pytest.raises(ModelLoadError, match=r"org/half: .* parts are missing"):
        find_candidate("org/half", ModelSettings())


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_lora_on_the_hub_brings_its_base(hub: FakeHub, tmp_path: Path, kind: str) -> None:
    put(hub, "org/base", make_model(tmp_path / "base"))
    put(hub, "org/lora", make_lora(tmp_path / "lora", base="org/base", kind=kind))

    found = find_candidate("org/lora", ModelSettings())

    exact = sum(2 * t.numel() for t in lora_weights().values())
    assert found.base == "org/base"
    # Of a pickle the size is known, and what is in it is not.
    assert exact <= found.lora_bytes <= 2 * exact + 4096


def test_a_hub_that_has_it_not_is_one_clear_error(hub: FakeHub) -> None:
    with pytest.raises(ModelNotFoundError, match=r"(?s)no model 'org/none'.*HF_ENDPOINT"):
        find_candidate("org/none", ModelSettings())


def test_a_broken_header_on_the_hub_is_one_clear_error(hub: FakeHub, tmp_path: Path) -> None:
    make_model(tmp_path / "bad")
    (tmp_path / "bad" / "model.safetensors").write_bytes(b"\x05" + 7 * b"\0" + b"{...}")
    put(hub, "org/bad", tmp_path / "bad")

    with pytest.raises(ModelLoadError, match="org/bad"):
        find_candidate("org/bad", ModelSettings())
