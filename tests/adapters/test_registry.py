from collections.abc import Sequence
from itertools import permutations
from pathlib import Path

import pytest

from dbgpt_guanaco.adapters import default_registry
from dbgpt_guanaco.adapters.base import BaseLLMAdapter
from dbgpt_guanaco.adapters.guanaco import GuanacoAdapter
from dbgpt_guanaco.adapters.llama import Llama2ChatAdapter
from dbgpt_guanaco.adapters.registry import AdapterRegistry
from dbgpt_guanaco.adapters.vicuna import VicunaAdapter
from dbgpt_guanaco.errors import AmbiguousModelError, ConfigurationError, UnknownModelError


class StableVicunaAdapter(VicunaAdapter):
    name = "stable-vicuna"
    keywords = ("stable-vicuna",)


class OtherVicunaAdapter(VicunaAdapter):
    name = "other-vicuna"
    keywords = ("vicuna",)


@pytest.mark.parametrize(
    ("model_path", "expected"),
    [
        ("guanaco-7b", "guanaco"),
        ("TheBloke/Guanaco-33B-HF", "guanaco"),
        ("guanaco7b", "guanaco"),
        ("qlora_guanaco_65b", "guanaco"),
        ("models/guanaco-7b/checkpoint-500", "guanaco"),
        ("/home/vicuna/models/guanaco-7b", "guanaco"),
        ("/srv/llama-2-chat/vicuna-13b", "vicuna"),
        ("/srv/guanaco/vicuna-13b/snapshots/0123abc", "vicuna"),
        ("lmsys/vicuna-7b-v1.5", "vicuna"),
        ("Vicuna-13B", "vicuna"),
        ("meta-llama/Llama-2-7b-chat-hf", "llama-2-chat"),
        ("llama2-13b-chat", "llama-2-chat"),
        ("TheBloke/Llama-2-70B-Chat-fp16", "llama-2-chat"),
    ],
)
def test_path_picks_adapter(model_path: str, expected: str) -> None:
    assert default_registry().find(model_path).name == expected


@pytest.mark.parametrize(
    "model_path",
    [
        "meta-llama/Llama-2-7b-hf",
        "llama2-13b",
        "huggyllama/llama-7b",
        "meta-llama/Llama-3-8b-chat",
        "chat/llama-2-7b",
        "guanacos-and-llamas",
        "myguanaco",
        "gpt2",
        "",
    ],
)
def test_what_names_no_family_is_unknown(model_path: str) -> None:
    with pytest.raises(UnknownModelError):
        default_registry().find(model_path)


def test_unknown_path_names_the_known_adapters_and_the_way_out() -> None:
    with pytest.raises(
        UnknownModelError, match=r"guanaco, llama-2-chat, vicuna\. .*GUANACO_ADAPTER"
    ):
        default_registry().find("someone/brand-new-llm")


ADAPTERS: Sequence[BaseLLMAdapter] = (
    GuanacoAdapter(),
    VicunaAdapter(),
    Llama2ChatAdapter(),
    StableVicunaAdapter(),
)


@pytest.mark.parametrize("adapters", permutations(ADAPTERS))
def test_registration_order_has_no_effect(adapters: Sequence[BaseLLMAdapter]) -> None:
    registry = AdapterRegistry(adapters)

    assert registry.find("stable-vicuna-13b").name == "stable-vicuna"
    assert registry.find("vicuna-13b").name == "vicuna"
    assert registry.find("guanaco-7b").name == "guanaco"
    with pytest.raises(AmbiguousModelError, match="any of guanaco, vicuna; say which with GUANACO"):
        registry.find("guanaco-vicuna-7b")


@pytest.mark.parametrize(
    "adapters", permutations([VicunaAdapter(), StableVicunaAdapter(), OtherVicunaAdapter()])
)
def test_two_subclasses_of_one_base_are_ambiguous(adapters: Sequence[BaseLLMAdapter]) -> None:
    with pytest.raises(AmbiguousModelError, match="any of other-vicuna, stable-vicuna;"):
        AdapterRegistry(adapters).find("stable-vicuna-13b")


def test_an_ambiguous_component_is_not_settled_by_a_folder_higher_up() -> None:
    with pytest.raises(AmbiguousModelError):
        default_registry().find("models/guanaco/vicuna-on-guanaco-7b")


def test_get_goes_by_exact_name() -> None:
    registry = default_registry()

    assert registry.get("vicuna").name == "vicuna"
    with pytest.raises(UnknownModelError, match="known: guanaco, llama-2-chat, vicuna"):
        registry.get("Vicuna")


def test_a_name_that_is_taken_is_refused() -> None:
    with pytest.raises(ValueError, match="'guanaco' is already registered"):
        AdapterRegistry([GuanacoAdapter(), GuanacoAdapter()])


def test_names_are_sorted() -> None:
    assert AdapterRegistry(reversed(ADAPTERS)).names == (
        "guanaco",
        "llama-2-chat",
        "stable-vicuna",
        "vicuna",
    )


MODULE = """
from dbgpt_guanaco.adapters.guanaco import GuanacoAdapter
from dbgpt_guanaco.adapters.vicuna import VicunaAdapter

class AlpacaAdapter(VicunaAdapter):
    name = "alpaca"
    keywords = ("alpaca",)

an_instance = AlpacaAdapter()
class NoAdapter: pass
"""


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, module: str, value: str) -> None:
    """Lay a distribution that offers one adapter on the path."""
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[dbgpt_guanaco.adapters]\nours = {module}:{value}\n")
    (folder / f"{module}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(folder)


def test_an_installed_package_adds_a_family(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, "fake_alpaca", "AlpacaAdapter")

    registry = default_registry()

    assert registry.names == ("alpaca", "guanaco", "llama-2-chat", "vicuna")
    assert registry.find("alpaca-7b").name == "alpaca"


@pytest.mark.parametrize("value", ["an_instance", "NoAdapter", "__name__"])
def test_an_installed_package_that_offers_no_adapter_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    module = f"fake_{value.strip('_').lower()}"
    install(tmp_path, monkeypatch, module, value)

    with pytest.raises(
        ConfigurationError, match=rf"'ours' \({module}:{value}\) is not a BaseLLMAdapter subclass"
    ):
        default_registry()


def test_an_installed_package_cannot_take_the_name_of_a_family(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, "fake_guanaco", "GuanacoAdapter")

    with pytest.raises(
        ConfigurationError, match="fake_guanaco:GuanacoAdapter: adapter 'guanaco' is already"
    ):
        default_registry()
