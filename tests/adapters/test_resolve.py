import json
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

from dbgpt_guanaco.adapters import resolve as resolve_module
from dbgpt_guanaco.adapters.folder import missing_files
from dbgpt_guanaco.adapters.known import KNOWN_MODELS
from dbgpt_guanaco.adapters.resolve import ModelSource, resolve
from dbgpt_guanaco.errors import ModelLoadError, ModelNotFoundError
from dbgpt_guanaco.settings import DEMO_MODEL, ModelSettings


@pytest.fixture(autouse=True)
def _no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in an empty folder with an empty hub cache; whoever asks the hub fails the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(resolve_module, "snapshot_download", refuse_any_hub_call)
    monkeypatch.setattr(HfApi, "model_info", refuse_any_hub_call)


def refuse_any_hub_call(*args: object, **options: object) -> str:
    raise AssertionError(f"the hub was asked: {args} {options}")


def only_the_cache(*args: Any, **options: Any) -> str:
    """Look in the hub's own cache, which is no network."""
    assert options.get("local_files_only"), "the hub was asked"
    return str(snapshot_download(*args, **options))


def make(folder: str | Path, *files: str) -> Path:
    folder = Path(folder)
    folder.mkdir(parents=True)
    for name in files:
        (folder / name).write_text("{}")
    return folder


def make_model(folder: str | Path) -> Path:
    return make(folder, "config.json", "model.safetensors")


def make_lora(folder: str | Path, base: str | None = None) -> Path:
    made = make(folder, "adapter_model.safetensors")
    config = {} if base is None else {"base_model_name_or_path": base}
    (made / "adapter_config.json").write_text(json.dumps(config))
    return made


def make_sharded(folder: str | Path, present: Iterable[int], count: int) -> Path:
    names = [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    made = make(folder, "config.json", *(names[i - 1] for i in present))
    index = {"weight_map": {f"weight_{i}": name for i, name in enumerate(names)}}
    (made / "model.safetensors.index.json").write_text(json.dumps(index))
    return made


def make_cached(hub: str, *files: str) -> Path:
    """Lay files in the hub's cache, as a download leaves them."""
    root = Path(constants.HF_HUB_CACHE) / f"models--{hub.replace('/', '--')}"
    made = make(root / "snapshots" / "0123abc", *files)
    make(root / "refs")
    (root / "refs" / "main").write_text("0123abc")
    return made


def test_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "somewhere" / "guanaco-7b")

    source = resolve(ModelSettings(name=str(folder)))

    assert source == ModelSource("guanaco-7b", folder, None, (str(folder),))


def test_a_name_is_looked_up_in_the_models_folder() -> None:
    folder = make_model("my-models/tiny")

    source = resolve(ModelSettings(name="tiny", models_dir=Path("my-models")))

    assert source == ModelSource("tiny", folder, None, ("tiny",))


def test_a_hub_name_is_looked_up_in_the_models_folder_first() -> None:
    folder = make_model("models/timdettmers/guanaco-33b-merged")

    source = resolve(ModelSettings(name="timdettmers/guanaco-33b-merged"))

    assert source.name == "guanaco-33b-merged"
    assert source.model_path == folder


def test_an_empty_folder_counts_as_absent() -> None:
    make("tiny")
    folder = make_model("models/tiny")

    assert resolve(ModelSettings(name="tiny")).model_path == folder


def test_the_home_folder_may_be_written_as_a_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = make_model(tmp_path / "tiny")

    assert resolve(ModelSettings(name="~/tiny")).model_path == folder


def test_the_demo_model_is_made_in_the_models_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve_module, "ensure_demo_model", make_model)

    assert resolve(ModelSettings()).model_path == Path("models") / DEMO_MODEL


def test_a_lora_brings_the_base_that_its_config_names() -> None:
    lora, base = make_lora("models/my-lora", base="org/base"), make_model("models/org/base")

    source = resolve(ModelSettings(name="my-lora"))

    assert source == ModelSource("my-lora", base, lora, ("my-lora", "org/base"))


def test_the_setting_for_the_base_beats_the_lora_config() -> None:
    lora, base = make_lora("models/my-lora", base="org/base"), make_model("models/mine")

    source = resolve(ModelSettings(name="my-lora", base_model="mine"))

    assert source == ModelSource("my-lora", base, lora, ("my-lora", "mine"))


def test_a_known_lora_brings_its_base_whatever_its_config_says() -> None:
    lora = make_lora("models/guanaco-7b", base="/home/author/llama-7b")
    base = make_model("models/huggyllama/llama-7b")

    source = resolve(ModelSettings(name="guanaco-7b"))

    assert source == ModelSource("guanaco-7b", base, lora, ("guanaco-7b", "huggyllama/llama-7b"))


def test_a_lora_that_names_no_base_says_which_setting_does() -> None:
    make_lora("models/my-lora")

    with pytest.raises(ModelLoadError, match=r"names no base model; .* GUANACO_BASE_MODEL"):
        resolve(ModelSettings(name="my-lora"))


def test_a_lora_can_be_laid_on_a_base() -> None:
    base, lora = make_model("models/base"), make_lora("models/guanaco-lora", base="unused/name")

    source = resolve(ModelSettings(name="base", lora="guanaco-lora"))

    assert source == ModelSource("base", base, lora, ("guanaco-lora", "base"))


def test_a_lora_on_a_lora_is_refused() -> None:
    make_lora("models/one", base="base")
    make_lora("models/two", base="base")
    make_model("models/base")

    with pytest.raises(ModelLoadError, match="LLM_MODEL=one is a LoRA itself; drop GUANACO_LORA"):
        resolve(ModelSettings(name="one", lora="two"))


def test_a_lora_that_is_none_is_refused() -> None:
    make_model("models/base")
    make_model("models/other")

    with pytest.raises(ModelLoadError, match="GUANACO_LORA=other: models/other holds no LoRA"):
        resolve(ModelSettings(name="base", lora="other"))


def test_a_whole_set_of_shards_is_taken() -> None:
    folder = make_sharded("models/tiny", present=[1, 2], count=2)

    assert missing_files(folder) == []
    assert resolve(ModelSettings(name="tiny")).model_path == folder


def test_shards_without_an_index_are_no_model() -> None:
    folder = make("models/tiny", "config.json", "model-00001-of-00002.safetensors")

    assert missing_files(folder) == ["model.safetensors"]


def test_missing_shards_are_named() -> None:
    make_sharded("models/tiny", present=[2], count=3)

    with pytest.raises(
        ModelLoadError,
        match=r"not a whole model: model-00001-of-00003\.safetensors, "
        r"model-00003-of-00003\.safetensors is missing",
    ):
        resolve(ModelSettings(name="tiny"))


def test_many_missing_shards_are_shortened() -> None:
    make_sharded("models/tiny", present=[], count=9)

    with pytest.raises(ModelLoadError, match=r"model-00005-of-00009\.safetensors … is missing"):
        resolve(ModelSettings(name="tiny"))


@pytest.mark.parametrize(
    ("files", "missing"),
    [
        (["model.safetensors"], "config.json"),
        (["config.json"], "model.safetensors"),
        (["README.md"], "config.json"),
    ],
)
def test_a_folder_that_is_no_model_says_what_is_missing(files: list[str], missing: str) -> None:
    make("models/tiny", *files)

    with pytest.raises(ModelLoadError, match=f"not a whole model: {missing} is missing"):
        resolve(ModelSettings(name="tiny"))


@pytest.mark.parametrize("weights", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin"])
def test_pickled_weights_name_the_command_that_converts_them(weights: str) -> None:
    folder = make("models/tiny", "config.json", weights)

    with pytest.raises(ModelLoadError, match=f"dbgpt-guanaco convert {folder}$"):
        resolve(ModelSettings(name="tiny"))


def test_an_unknown_name_lists_every_place_looked_in() -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        resolve(ModelSettings(name="no-such-model", models_dir=Path("my-models")))

    message = str(caught.value)
    assert message.startswith("no model 'no-such-model'. Looked in:\n")
    assert "  - folder no-such-model\n" in message
    assert "  - folder my-models/no-such-model\n" in message
    assert all(name in message for name in KNOWN_MODELS)


@pytest.mark.parametrize("name", ["/no/such/folder", "./tiny", "../tiny", "a/b/c", "org/na me"])
def test_what_cannot_be_a_hub_name_is_not_looked_up_there(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match="known names: "):
        resolve(ModelSettings(name=name))


def test_an_offline_machine_is_told_how_to_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(resolve_module, "snapshot_download", only_the_cache)

    with pytest.raises(ModelNotFoundError) as caught:
        resolve(ModelSettings(name="org/name"))

    message = str(caught.value)
    assert "  - folder models/org/name\n" in message
    assert f"  - hub cache {constants.HF_HUB_CACHE}, as org/name\n" in message
    assert "  - the hub was not asked: HF_HUB_OFFLINE is set\n" in message
    assert message.endswith("hf download org/name --local-dir models/org/name")


def test_a_known_name_is_fetched_under_its_hub_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(resolve_module, "snapshot_download", only_the_cache)

    with pytest.raises(
        ModelNotFoundError,
        match=r"hf download timdettmers/guanaco-33b-merged --local-dir models/guanaco-33b-merged$",
    ):
        resolve(ModelSettings(name="guanaco-33b-merged"))


@pytest.mark.parametrize("is_offline", [True, False])
def test_the_cache_of_the_hub_is_used_without_network(
    monkeypatch: pytest.MonkeyPatch, is_offline: bool
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", is_offline)
    monkeypatch.setattr(resolve_module, "snapshot_download", only_the_cache)
    folder = make_cached("org/name", "config.json", "model.safetensors")

    source = resolve(ModelSettings(name="org/name"))

    assert source == ModelSource("name", folder, None, ("org/name",))


def test_a_known_lora_and_its_base_come_out_of_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve_module, "snapshot_download", only_the_cache)
    lora = make_cached("timdettmers/guanaco-7b", "adapter_config.json", "adapter_model.bin")
    base = make_cached("huggyllama/llama-7b", "config.json", "model.safetensors")

    source = resolve(ModelSettings(name="guanaco-7b"))

    assert (source.model_path, source.lora_path) == (base, lora)


class FakeHub:
    """A hub with one repository, reached through the two functions that resolving calls."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        files: list[str],
        *,
        fail_listing: Exception | None = None,
        fail_fetching: Exception | None = None,
    ) -> None:
        self.files = files
        self.fail_listing, self.fail_fetching = fail_listing, fail_fetching
        self.fetched: list[str] = []
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(HfApi, "model_info", self.model_info)
        monkeypatch.setattr(resolve_module, "snapshot_download", self.snapshot_download)

    def model_info(self, hub: str, *, timeout: float) -> SimpleNamespace:
        if self.fail_listing:
            raise self.fail_listing
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in self.files])

    def snapshot_download(
        self,
        hub: str,
        *,
        local_files_only: bool = False,
        allow_patterns: list[str],
        ignore_patterns: list[str] | None = None,
        tqdm_class: Any = None,
    ) -> str:
        if local_files_only:
            return only_the_cache(hub, local_files_only=True, allow_patterns=allow_patterns)
        if self.fail_fetching:
            raise self.fail_fetching
        self.fetched.append(hub)
        folder = Path("fetched")
        folder.mkdir()
        for name in self.files:
            is_wanted = any(fnmatch(name, pattern) for pattern in allow_patterns)
            if is_wanted and not any(fnmatch(name, p) for p in ignore_patterns or []):
                (folder / name).write_text("{}")
        return str(folder)


def test_what_is_nowhere_here_is_fetched_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    others = ["pytorch_model.bin", "x.py", "consolidated.00.safetensors"]
    hub = FakeHub(monkeypatch, ["config.json", "model.safetensors", *others])

    source = resolve(ModelSettings(name="org/name"))

    assert source == ModelSource("name", Path("fetched"), None, ("org/name",))
    assert hub.fetched == ["org/name"]
    assert sorted(p.name for p in Path("fetched").iterdir()) == ["config.json", "model.safetensors"]


def test_a_cache_with_half_a_model_is_filled_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    make_cached("org/name", "config.json")
    hub = FakeHub(monkeypatch, ["config.json", "model.safetensors"])

    assert resolve(ModelSettings(name="org/name")).model_path == Path("fetched")
    assert hub.fetched == ["org/name"]


@pytest.mark.parametrize("name", ["org/name", "guanaco-33b-merged"])
def test_a_hub_model_of_pickles_is_not_fetched_but_explained(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    hub = FakeHub(monkeypatch, ["config.json", "pytorch_model-00001-of-00002.bin"])

    with pytest.raises(ModelLoadError, match="only pickled weights on the hub") as caught:
        resolve(ModelSettings(name=name))

    assert hub.fetched == []
    fetch, convert = str(caught.value).splitlines()[-2:]
    assert fetch.endswith(f"--local-dir models/{name}")
    assert convert.endswith(f"dbgpt-guanaco convert models/{name}")
    make_model(f"models/{name}")  # what the two commands lead to
    assert resolve(ModelSettings(name=name)).model_path == Path("models") / name


def http_error(kind: str, message: str = "told by the test") -> Exception:
    """Return an error of the hub's HTTP client, as the hub lets it through."""
    from huggingface_hub import errors

    base = vars(errors)["HTTPError"]
    made: Exception = type(kind, (base,), {})(message)
    return made


@pytest.mark.parametrize(
    ("failure", "shown"),
    [
        (http_error("HfHubHTTPError"), "HfHubHTTPError: told by the test"),
        (http_error("ProxyError"), "ProxyError: told by the test"),
        (http_error("ReadTimeout", ""), "ReadTimeout: "),
        (LocalEntryNotFoundError("not here\nand more"), "LocalEntryNotFoundError: not here"),
        (OfflineModeIsEnabled("offline"), "OfflineModeIsEnabled: offline"),
        (ConnectionResetError("reset"), "ConnectionResetError: reset"),
        (OSError(28, "No space left on device"), "OSError: [Errno 28] No space left on device"),
        (OSError(), "OSError: "),
    ],
)
@pytest.mark.parametrize("step", ["fail_listing", "fail_fetching"])
def test_a_failure_of_the_hub_is_a_model_not_found(
    monkeypatch: pytest.MonkeyPatch, failure: Exception, shown: str, step: str
) -> None:
    hub = FakeHub(monkeypatch, ["config.json", "model.safetensors"])
    setattr(hub, step, failure)

    with pytest.raises(ModelNotFoundError) as caught:
        resolve(ModelSettings(name="org/name"))

    message = str(caught.value)
    assert f"  - hub org/name: {shown}\n" in message
    assert message.endswith("hf download org/name --local-dir models/org/name")


def test_every_known_name_is_a_family_or_ships_a_template() -> None:
    from dbgpt_guanaco.adapters import default_registry

    registry = default_registry()

    for name in set(KNOWN_MODELS) - {DEMO_MODEL}:
        assert registry.find(name).name == name.partition("-")[0]


@pytest.mark.parametrize("damaged", ["", "{", "[]", "null"])
def test_a_damaged_index_is_one_clear_error(tmp_path: Path, damaged: str) -> None:
    folder = make_sharded(tmp_path / "model", present=[1], count=1)
    (folder / "model.safetensors.index.json").write_text(damaged)

    with pytest.raises(ModelLoadError, match=r"index\.json is damaged"):
        resolve(ModelSettings(name=str(folder)))


def test_a_damaged_lora_config_is_one_clear_error(tmp_path: Path) -> None:
    folder = make_lora(tmp_path / "lora", base="base")
    (folder / "adapter_config.json").write_text("{")

    with pytest.raises(ModelLoadError, match=r"adapter_config\.json is damaged"):
        resolve(ModelSettings(name=str(folder)))


def test_a_name_that_is_nearly_known_is_guessed_in_the_message() -> None:
    with pytest.raises(ModelNotFoundError, match="Did you mean guanaco-7b"):
        resolve(ModelSettings(name="guanco-7b"))


@pytest.mark.parametrize(
    "name",
    [
        "../outside.safetensors",
        "/etc/outside.safetensors",
        "sub/outside.safetensors",
        "..\\outside.safetensors",
        "outside\0.safetensors",
        "config.json",
        "",
        7,
        ["outside.safetensors"],
    ],
)
def test_an_index_names_files_beside_it_and_nothing_else(tmp_path: Path, name: object) -> None:
    folder = make_sharded(tmp_path / "model", present=[1], count=1)
    (tmp_path / "outside.safetensors").write_text("{}")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))

    with pytest.raises(ModelLoadError, match=r"index\.json is damaged: .* is not the name"):
        resolve(ModelSettings(name=str(folder)))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' * 100_000])
def test_json_that_is_nested_too_deeply_is_damaged(tmp_path: Path, text: str) -> None:
    folder = make_sharded(tmp_path / "model", present=[1], count=1)
    (folder / "model.safetensors.index.json").write_text(text)

    with pytest.raises(ModelLoadError, match=r"index\.json is damaged"):
        resolve(ModelSettings(name=str(folder)))


def test_json_that_would_fill_the_memory_is_not_read(tmp_path: Path) -> None:
    folder = make_sharded(tmp_path / "model", present=[1], count=1)
    with (folder / "model.safetensors.index.json").open("wb") as file:
        file.truncate(2**40)  # sparse: it takes no room on the disk

    with pytest.raises(ModelLoadError, match="larger than"):
        resolve(ModelSettings(name=str(folder)))


@pytest.mark.parametrize("base", ["../base", "models/../../base", "..\\base", "org/base\0", "a\nb"])
def test_the_base_that_a_lora_names_does_not_climb(base: str) -> None:
    make_lora("models/my-lora", base=base)
    make_model("base")

    with pytest.raises(ModelLoadError, match="name the base with GUANACO_BASE_MODEL"):
        resolve(ModelSettings(name="my-lora"))


@pytest.mark.parametrize("name", ["org/name", "guanaco-33b-merged", DEMO_MODEL])
def test_what_may_not_be_fetched_is_not_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve_module, "snapshot_download", only_the_cache)
    monkeypatch.setattr(resolve_module, "ensure_demo_model", refuse_any_hub_call)

    with pytest.raises(ModelNotFoundError, match=r"Fetch it with:  .*hf download"):
        resolve(ModelSettings(name=name), may_fetch=False)
