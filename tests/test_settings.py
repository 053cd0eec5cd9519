import os
from collections.abc import Callable
from pathlib import Path

import pytest

from dbgpt_guanaco.environment import load_settings, setting_names
from dbgpt_guanaco.errors import ConfigurationError
from dbgpt_guanaco.settings import (
    EngineSettings,
    ModelSettings,
    ServerSettings,
    Settings,
    memory_bytes,
)

GIB = 1024**3

Load = Callable[[str], Settings]


@pytest.fixture(autouse=True)
def _no_settings_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper() in setting_names() or name.upper().startswith("GUANACO_"):
            monkeypatch.delenv(name)


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load_from(text: str) -> Settings:
        env_file = tmp_path / ".env"
        env_file.write_text(text)
        return load_settings(env_file)

    return load_from


def test_without_any_env_file_the_demo_model_is_served_on_loopback(tmp_path: Path) -> None:
    settings = load_settings(tmp_path / "nothing-here")

    assert settings == Settings()
    assert settings.model.name == "smollm2-135m-instruct"
    assert (settings.server.host, settings.server.port) == ("127.0.0.1", 8000)
    assert settings.model.quantization == "nf4"


def test_a_value_reaches_the_group_that_takes_it(load: Load) -> None:
    settings = load(
        "LLM_MODEL=guanaco-7b\nLIMIT_MODEL_CONCURRENCY=3\nMODEL_PORT=9001\n"
        "GUANACO_ALIASES=gpt-3.5-turbo, vicuna-13b,\n"
    )

    assert settings.model.name == "guanaco-7b"
    assert settings.model.aliases == ("gpt-3.5-turbo", "vicuna-13b")
    assert settings.engine.slots == 3
    assert settings.server.port == 9001


def test_the_environment_beats_the_file(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_MODEL", "from-the-environment")

    settings = load("LLM_MODEL=from-the-file\nMODEL_PORT=9001\n")

    assert settings.model.name == "from-the-environment"
    assert settings.server.port == 9001


def test_an_empty_value_counts_as_absent(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_MODEL", "")
    monkeypatch.setenv("MODEL_PORT", "")

    settings = load("LLM_MODEL=from-the-file\nTEMPERATURE=\nGUANACO_LORA=\n")

    assert settings.model.name == "from-the-file"
    assert settings.model.lora is None
    assert settings.server == ServerSettings()


@pytest.mark.parametrize("name", ["GUANACO_HOTS", "guanaco_hots", "Guanaco_Model"])
def test_a_misspelt_name_in_the_file_is_refused(load: Load, name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"unknown setting {name.upper()};"):
        load(f"{name}=0.0.0.0\n")


def test_a_misspelt_name_in_the_environment_is_refused(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GUANACO_QUANTISATION", "nf4")

    with pytest.raises(
        ConfigurationError, match=r"GUANACO_QUANTISATION; did you mean GUANACO_QUANTIZATION\? "
    ):
        load("")


def test_foreign_keys_are_ignored(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROXY_API_KEY", "sk-not-ours")

    assert load("LANGUAGE=zh\nVECTOR_STORE_TYPE=Chroma\nLOCAL_DB_PASSWORD=aa123456\n") == Settings()


@pytest.mark.parametrize("group", [ModelSettings, EngineSettings, ServerSettings])
def test_the_name_of_a_field_is_a_foreign_key(
    load: Load,
    monkeypatch: pytest.MonkeyPatch,
    group: type[ModelSettings | EngineSettings | ServerSettings],
) -> None:
    foreign = [name for name in group.model_fields if name.upper() not in setting_names()]
    for name in foreign:  # a shell's HOST must not open the server to the network
        monkeypatch.setenv(name.upper(), "0.0.0.0")

    assert load("".join(f"{name}=0.0.0.0\n" for name in foreign)) == Settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MODEL_PORT", "-1"),
        ("MODEL_PORT", "65536"),
        ("MODEL_PORT", "eight"),
        ("TEMPERATURE", "nan"),
        ("TEMPERATURE", "inf"),
        ("TEMPERATURE", "-0.1"),
        ("TEMPERATURE", "warm"),
        ("GUANACO_KEEP_ALIVE", "nan"),
        ("GUANACO_KEEP_ALIVE", "0"),
        ("GUANACO_LEGACY_FRAME_INTERVAL", "nan"),
        ("GUANACO_LEGACY_FRAME_INTERVAL", "-1"),
        ("GUANACO_LEGACY_ECHO", "pad12"),
        ("GUANACO_LOG_LEVEL", "loud"),
        ("GUANACO_MAX_N", "0"),
        ("GUANACO_MAX_BODY_BYTES", "1"),
        ("LIMIT_MODEL_CONCURRENCY", "0"),
        ("LIMIT_MODEL_CONCURRENCY", "1.5"),
        ("GUANACO_QUEUE_SIZE", "-1"),
        ("GUANACO_PREFILL_CHUNK", "8"),
        ("GUANACO_QUANTIZATION", "fp4"),
        ("GUANACO_COMPUTE_DTYPE", "float32"),
        ("GUANACO_DEVICE", "tpu"),
        ("QUANTIZE_QLORA", "perhaps"),
        ("QUANTIZE_8BIT", "8"),
        ("MAX_POSITION_EMBEDDINGS", "15"),
        ("MAX_POSITION_EMBEDDINGS", "-2048"),
        ("MAX_GPU_MEMORY", "lots"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_the_key(load: Load, name: str, value: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(f"{name}={value}\n")

    [line] = str(caught.value).splitlines()
    assert line.startswith(f"{name}={value}: ")


def test_two_wrong_values_are_told_together(load: Load) -> None:
    with pytest.raises(ConfigurationError, match=r"(?s)^MODEL_PORT=.*\nMAX_GPU_MEMORY="):
        load("MODEL_PORT=-1\nMAX_GPU_MEMORY=lots\n")


@pytest.mark.parametrize(
    ("text", "expected", "is_given"),
    [
        ("", "nf4", False),
        ("QUANTIZE_QLORA=True\nQUANTIZE_8bit=True\n", "nf4", True),  # DB-GPT's stock .env
        ("QUANTIZE_QLORA=True\n", "nf4", True),
        ("QUANTIZE_4bit=True\n", "nf4", True),
        ("QUANTIZE_4bit=True\nQUANTIZE_8bit=False\n", "nf4", True),
        ("QUANTIZE_QLORA=False\nQUANTIZE_4bit=True\n", "nf4", True),
        ("QUANTIZE_QLORA=True\nQUANTIZE_4bit=True\nQUANTIZE_8bit=True\n", "nf4", True),
        ("QUANTIZE_8bit=True\n", "int8", True),
        ("QUANTIZE_QLORA=False\nQUANTIZE_8bit=True\n", "int8", True),
        ("QUANTIZE_4bit=False\nQUANTIZE_8bit=True\n", "int8", True),
        ("QUANTIZE_QLORA=False\n", "none", True),
        ("QUANTIZE_4bit=False\nQUANTIZE_8bit=False\n", "none", True),
        ("QUANTIZE_8bit=False\n", "nf4", True),  # says only what not to take
        ("GUANACO_QUANTIZATION=none\nQUANTIZE_QLORA=True\n", "none", True),
        ("GUANACO_QUANTIZATION=int8\nQUANTIZE_QLORA=False\n", "int8", True),
        ("GUANACO_QUANTIZATION=nf4\nQUANTIZE_4bit=True\nQUANTIZE_8bit=True\n", "nf4", True),
    ],
)
def test_the_switches_decide_the_quantization(
    load: Load, text: str, expected: str, is_given: bool
) -> None:
    settings = load(text)

    assert settings.model.quantization == expected
    assert settings.model.is_quantization_given is is_given


@pytest.mark.parametrize("qlora", ["", "QUANTIZE_QLORA=False\n"])
def test_four_and_eight_bit_together_are_a_contradiction(load: Load, qlora: str) -> None:
    with pytest.raises(ConfigurationError, match="QUANTIZE_4bit and QUANTIZE_8bit are both on"):
        load(f"{qlora}QUANTIZE_4bit=True\nQUANTIZE_8bit=True\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("16Gib", 16 * GIB),
        ("22GiB", 22 * GIB),
        ("24GB", 24 * 10**9),
        ("24G", 24 * 10**9),
        ("1.5 TiB", 1536 * GIB),
        ("512mib", GIB // 2),
        (" 8KiB ", 8192),
    ],
)
def test_a_size_is_read_in_bytes(text: str, expected: int) -> None:
    assert memory_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "22", "GiB", "-1GiB", "22 Gigs", "1e3GiB", "nanGiB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size; write it like 22GiB"):
        memory_bytes(text)


def test_the_gpus_of_the_file_reach_the_environment(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")  # so that what is set now is undone

    load("CUDA_VISIBLE_DEVICES=1,3\n")

    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1,3"


@pytest.mark.parametrize("given", ["0", ""])
def test_the_gpus_of_the_environment_stay(
    load: Load, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)

    load("CUDA_VISIBLE_DEVICES=1,3\n")

    assert os.environ["CUDA_VISIBLE_DEVICES"] == given


def test_every_setting_has_a_description() -> None:
    assert all(setting_names().values())


@pytest.mark.parametrize("group", [ModelSettings, EngineSettings, ServerSettings])
def test_a_misspelt_argument_of_a_group_is_refused(
    group: type[ModelSettings | EngineSettings | ServerSettings],
) -> None:
    with pytest.raises(ValueError, match="Extra inputs are not permitted"):
        group.model_validate({"nmae": "guanaco-7b"})


@pytest.mark.parametrize("name", ["GUANACO_API_BASE", "GUANACO_API_KEY"])
def test_what_the_plugin_inside_dbgpt_reads_may_stand_in_a_shared_file(
    load: Load, name: str
) -> None:
    load(f"{name}=x")


def test_controllers_and_networks_are_lists(load: Load) -> None:
    cluster = load(
        "GUANACO_CONTROLLER=http://10.0.0.5:8000/, http://two:1\n"
        "GUANACO_WORKER_NETWORKS=10.0.0.0/24,::1/128"
    ).cluster
    assert cluster.controllers == ("http://10.0.0.5:8000", "http://two:1")
    assert [str(network) for network in cluster.worker_networks] == ["10.0.0.0/24", "::1/128"]


@pytest.mark.parametrize("value", ["10.0.0.5:8000", "controller", "ftp://a", "http://"])
def test_a_controller_that_is_no_address_is_refused(load: Load, value: str) -> None:
    with pytest.raises(ConfigurationError, match=r"GUANACO_CONTROLLER.*http://10\.0\.0\.5:8000"):
        load(f"GUANACO_CONTROLLER={value}")


@pytest.mark.parametrize("value", ["10.0.0.1/24", "everywhere", "10.0.0.0/40"])
@pytest.mark.parametrize(
    "name", ["GUANACO_WORKER_NETWORKS", "GUANACO_DBGPT_NETWORKS", "GUANACO_METRICS_NETWORKS"]
)
def test_a_network_that_is_none_is_refused(load: Load, name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        load(f"{name}={value}")


def test_keys_are_listed_and_never_shown(load: Load) -> None:
    access = load("GUANACO_API_KEYS=the-first-key-of-two, the-other-key-of-two").access

    assert [key.get_secret_value() for key in access.api_keys] == [
        "the-first-key-of-two",
        "the-other-key-of-two",
    ]
    assert "-key-" not in repr(access)


@pytest.mark.parametrize("value", ["too-short-key", "a key that has blanks", "a-key:with-a-colon"])
@pytest.mark.parametrize("name", ["GUANACO_API_KEYS", "GUANACO_ADMIN_KEY"])
def test_a_key_that_is_none_is_refused_and_not_told(load: Load, name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{name}.*16 letters") as refused:
        load(f"{name}={value}")
    assert value not in str(refused.value)


@pytest.mark.parametrize(
    "value", ["*", "https://*.example", "chat.example", "https://a/b", "https://a/", "ftp://a"]
)
def test_an_origin_that_is_none_is_refused(load: Load, value: str) -> None:
    with pytest.raises(ConfigurationError, match=r"GUANACO_CORS_ORIGINS.*is not an origin"):
        load(f"GUANACO_CORS_ORIGINS={value}")


@pytest.mark.parametrize("value", ["http://a.example", "a.example:8000", "*", "a/b"])
def test_a_host_that_is_none_is_refused(load: Load, value: str) -> None:
    with pytest.raises(ConfigurationError, match=r"GUANACO_ALLOWED_HOSTS.*is not a host"):
        load(f"GUANACO_ALLOWED_HOSTS={value}")


def test_the_embedding_model_is_named_by_dbgpts_key(load: Load) -> None:
    settings = load("EMBEDDING_MODEL=text2vec\nGUANACO_EMBEDDING_DEVICE=cuda").embedding
    assert (settings.embedding_model, settings.embedding_device) == ("text2vec", "cuda")
