"""``finetune`` on a tiny random model: what it leaves, and what it refuses."""

import csv
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file
from tiny_models import CHAT_TEMPLATE, make_bpe_tokenizer, make_lora, make_model
from typer.testing import CliRunner

from dbgpt_guanaco.adapters import default_registry
from dbgpt_guanaco.adapters.cards import base_fingerprint
from dbgpt_guanaco.adapters.loading import load_model
from dbgpt_guanaco.adapters.resolve import resolve
from dbgpt_guanaco.checkpoints.partial import partial_folder
from dbgpt_guanaco.cli import app
from dbgpt_guanaco.settings import ModelSettings
from dbgpt_guanaco.training import finetuning, trainer, verification
from dbgpt_guanaco.training.course import plan_course
from dbgpt_guanaco.training.verification import logits_of

QUICK = ("--rank", "4", "--batch", "2", "--micro-batch", "2", "--max-steps", "3")


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "1000"})
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def talk(question: str, answer: str) -> str:
    turns = (("user", question), ("assistant", answer))
    return json.dumps({"messages": [{"role": role, "content": text} for role, text in turns]})


TALKS = [talk(f"What is {n}?", f"A number, {n}.") for n in ("one", "two", "three", "four", "five")]


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bpe_tokenizer(make_model(tmp_path_factory.mktemp("models") / "base"), CHAT_TEMPLATE)


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A LoRA, and what the command printed of it."""
    folder = tmp_path_factory.mktemp("trained")
    data = write(folder / "data.jsonl", *TALKS)
    code, stdout, err = run("finetune", base, data, "--out", folder / "lora", *QUICK, "--json")
    assert code == 0, err
    assert err == ""
    return folder / "lora", json.loads(stdout)


def test_the_folder_is_whole_and_nothing_stands_beside_it(trained: tuple[Path, Any]) -> None:
    folder, _ = trained

    assert {p.name for p in folder.iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "loss.csv",
        "loss.png",
        "tokenizer.json",
        "tokenizer_config.json",
        "training.json",
    }
    assert {p.name for p in folder.parent.iterdir()} == {"data.jsonl", "lora"}


def test_the_card_says_what_was_trained_on_what(
    base: Path, trained: tuple[Path, dict[str, Any]]
) -> None:
    folder, printed = trained

    card = json.loads((folder / "training.json").read_text())

    assert printed == card | {"out": str(folder)}
    assert card["base"]["name"] == str(base)
    assert card["base"]["fingerprint"] == base_fingerprint(base)
    assert card["quantization"] == "nf4"
    assert card["double_quantization"]
    assert card["compute_dtype"] == "bfloat16"
    assert card["family"] == "own template"
    assert card["data"]["conversations"] == card["data"]["examples"] == 5
    assert card["hyperparameters"]["rank"] == 4
    assert card["hyperparameters"]["optimizer"] == "adamw_torch"
    assert card["hyperparameters"]["learning_rate"] == 2e-4
    assert card["versions"]["peft"]
    assert card["metrics"]["steps"] == 3
    assert card["checks"]["tensors"] == 2 * 2 * 7
    assert card["checks"]["zero_b"] == 0
    # On a CPU what was saved gives the very logits of the model in training.
    assert card["checks"]["logit_difference"] == 0
    assert str(base) in (folder / "README.md").read_text()


def test_every_loss_is_in_the_table(trained: tuple[Path, dict[str, Any]]) -> None:
    folder, card = trained

    with (folder / "loss.csv").open() as file:
        rows = list(csv.DictReader(file))

    assert [row["step"] for row in rows] == ["1", "2", "3"]
    assert float(rows[0]["loss"]) == card["metrics"]["first_loss"]
    assert float(rows[-1]["loss"]) == card["metrics"]["last_loss"]
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_server_lays_it_on_the_base_that_its_configuration_names(
    base: Path, trained: tuple[Path, Any]
) -> None:
    folder, _ = trained
    settings = ModelSettings(name=str(folder), device="cpu")

    loaded = load_model(resolve(settings), settings, default_registry())

    assert loaded.model_path == base
    assert loaded.lora is not None
    assert len(loaded.lora.pairs) == 2 * 7
    assert loaded.card.family == "own template"


def test_a_base_is_named_so_that_the_server_finds_it(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(base, tmp_path / "my-models" / "tiny")
    shutil.copytree(base, tmp_path / "elsewhere")
    data = write(tmp_path / "data.jsonl", *TALKS)
    settings = ModelSettings(models_dir=Path("my-models"), device="cpu")

    def named(given: object) -> str:
        return plan_course(str(given), data, tmp_path / "out", settings, {}).base.name

    assert named("tiny") == "tiny"
    assert named("my-models/tiny") == "tiny"
    assert named(tmp_path / "my-models" / "tiny") == "tiny"
    assert named("elsewhere") == str(tmp_path / "elsewhere")


def test_the_family_that_was_trained_is_the_family_that_is_served(
    base: Path, tmp_path: Path
) -> None:
    out = tmp_path / "called-guanaco-all-the-same"
    data = write(tmp_path / "data.jsonl", *TALKS)

    code, _, err = run("finetune", base, data, "--out", out, *QUICK, "--family", "vicuna")

    assert code == 0, err
    settings = ModelSettings(name=str(out), device="cpu")
    loaded = load_model(resolve(settings), settings, default_registry())
    assert loaded.card.family == "vicuna"


def test_a_person_is_told_what_is_trained_how_far_it_is_and_how_to_serve_it(
    base: Path, tmp_path: Path
) -> None:
    data = write(tmp_path / "data.jsonl", *TALKS, talk("Long?", "Yes. " * 999), "not a line")
    out = tmp_path / "out"

    code, stdout, err = run("finetune", base, data, "--out", out, *QUICK, "--skip-bad")

    assert code == 0
    assert stdout == ""
    assert "6 conversations: 5 examples" in err
    assert "1 bad lines left out, 1 too long and left out" in err
    assert "3 steps of 2 sequences; rank 4, learning rate 0.0002, adamw_torch" in err
    assert "step 1 of 3, loss " in err
    assert "step 3 of 3, loss " in err
    assert f"LLM_MODEL={out} dbgpt-guanaco serve" in err


def test_the_same_run_gives_the_same_weights(base: Path, trained: Any, tmp_path: Path) -> None:
    folder, _ = trained

    data = write(tmp_path / "data.jsonl", *TALKS)
    assert run("finetune", base, data, "--out", tmp_path / "again", *QUICK)[0] == 0

    one, other = (load_file(f / "adapter_model.safetensors") for f in (folder, tmp_path / "again"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_memory_is_saved_without_another_result(base: Path, trained: Any, tmp_path: Path) -> None:
    folder, _ = trained

    data = write(tmp_path / "data.jsonl", *TALKS)
    more = (*QUICK, "--no-gradient-checkpointing")
    assert run("finetune", base, data, "--out", tmp_path / "again", *more)[0] == 0

    assert (tmp_path / "again" / "loss.csv").read_text() == (folder / "loss.csv").read_text()


# ------------------------------------------------------------------ what is refused


@contextmanager
def unchanged(folder: Path) -> Iterator[None]:
    before = sorted(folder.rglob("*"))
    yield
    assert sorted(folder.rglob("*")) == before


def assert_refused(folder: Path, message: str, base: object, data: object, *more: object) -> None:
    with unchanged(folder):
        code, out, err = run("finetune", base, data, "--out", folder / "new" / "out", *QUICK, *more)

    assert code == 2, err
    assert out == ""
    last = err.strip().splitlines()[-1]
    assert message in last, err


def test_a_base_that_cannot_be_trained_is_refused(base: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", *TALKS)
    lora = make_lora(tmp_path / "lora", base=str(base))
    quantized = tmp_path / "quantized"
    run("quantize", base, "--out", quantized)
    short = shutil.copytree(base, tmp_path / "short")
    weights = short / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    bare = make_bpe_tokenizer(make_model(tmp_path / "bare"))

    assert_refused(tmp_path, f"{lora} is a LoRA; merge it first", lora, data, "--json")
    assert_refused(tmp_path, f"{quantized} is quantized already", quantized, data, "--json")
    assert_refused(tmp_path, f"{weights} is cut short", short, data, "--json")
    assert_refused(tmp_path, "it from the hub", "no-such-base", data)
    assert_refused(
        tmp_path, "say with --family how prompts are to be written: guanaco", bare, data, "--json"
    )
    assert_refused(
        tmp_path,
        "--family vicunja is no family; known: guanaco",
        base,
        data,
        "--family",
        "vicunja",
        "--json",
    )


def test_data_that_teaches_nothing_is_refused(base: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    assert_refused(tmp_path, "data.jsonl cannot be read", base, data, "--json")
    write(data, "")
    assert_refused(tmp_path, "holds no conversation", base, data, "--json")
    write(data, *TALKS, "{}")
    assert_refused(tmp_path, "line 6 has none of the keys", base, data, "--json")
    write(data, "{}")
    assert_refused(tmp_path, "holds no conversation; ", base, data, "--skip-bad", "--json")
    write(data, talk("Hi?", "Yes. " * 999))
    assert_refused(tmp_path, "nothing is left to learn", base, data, "--json")


def test_a_wrong_option_is_refused_before_anything_is_read(base: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", *TALKS)

    assert_refused(tmp_path, "--micro-batch is 3; it must be", base, data, "--micro-batch", 3)
    assert_refused(tmp_path, "--dropout is 1.5; it must be", base, data, "--dropout", 1.5)
    paged = ("--optimizer", "paged_adamw_32bit", "--device", "cpu")
    assert_refused(tmp_path, "paged_adamw_32bit needs a GPU", base, data, *paged)


def test_what_does_not_fit_is_refused_before_the_weights_are_read(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dbgpt_guanaco.training.course.available_bytes", lambda *_: 2**20)
    monkeypatch.delattr("dbgpt_guanaco.training.finetuning.load_model")
    data = write(tmp_path / "data.jsonl", *TALKS)

    assert_refused(tmp_path, "the training does not fit cpu: ", base, data, "--json")


def test_what_is_in_the_way_is_not_written_over(base: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", *TALKS)
    (tmp_path / "out").mkdir()

    with unchanged(tmp_path):
        code, _, err = run("finetune", base, data, "--out", tmp_path / "out", *QUICK)

    assert code == 2
    assert "out exists already" in err


def test_a_folder_that_may_not_be_written_is_refused(base: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", *TALKS)

    code, _, err = run("finetune", base, data, "--out", "/proc/no/out", *QUICK, "--json")

    assert code == 2
    assert "/proc/no/out cannot be written: No such file or directory; nothing was left" in err


def test_a_disk_that_is_full_leaves_nothing(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save_pretrained(*_: object, **__: object) -> None:
        with Path("/dev/full").open("w") as full:
            full.write("weights")

    monkeypatch.setattr("peft.PeftModel.save_pretrained", save_pretrained)
    data = write(tmp_path / "data.jsonl", *TALKS)

    assert_refused(tmp_path, "No space left on device; nothing was left", base, data, "--json")


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("zero", "is zero: nothing was learned"),
        ("missing", "holds 27 tensors and the model 28"),
        ("changed", "is not what is in memory"),
        ("not finite", "is not finite"),
        ("cut short", "cannot be read back"),
    ],
)
def test_a_save_that_is_not_what_was_learned_is_an_error_and_leaves_no_lora(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str, message: str
) -> None:
    break_saves(monkeypatch, broken)
    data = write(tmp_path / "data.jsonl", *TALKS)

    assert_refused(tmp_path, message, base, data, "--json")


def break_saves(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Let every LoRA be saved wrongly."""
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"

    def load(path: Path) -> dict[str, torch.Tensor]:
        tensors = load_file(path)
        if how == "cut short":
            raise OSError("it ends")
        if how == "missing":
            del tensors[name]
        if how == "changed":
            tensors[name][0, 0] += 1
        if how == "not finite":
            tensors[name][0, 0] = torch.nan
        return {n: t * 0 for n, t in tensors.items()} if how == "zero" else tensors

    def in_memory(*arguments: Any, **more: Any) -> Any:
        found = get_peft_model_state_dict(*arguments, **more)
        return {n: t * 0 for n, t in found.items()} if how == "zero" else found

    monkeypatch.setattr(verification, "load_file", load)
    monkeypatch.setattr(verification, "get_peft_model_state_dict", in_memory)


def test_a_lora_that_gives_other_logits_when_it_is_read_back_is_an_error(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetuning, "logits_of", lambda model, ids: logits_of(model, ids) * 1.1)
    data = write(tmp_path / "data.jsonl", *TALKS)
    out = tmp_path / "out"

    code, _, err = run("finetune", base, data, "--out", out, *QUICK, "--json")

    assert code == 2
    assert "gives other logits than the model in training" in err
    assert not out.exists()
    assert not (partial_folder(out) / "model").exists()


def test_a_loss_that_is_no_number_ends_the_training(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = trainer.QloraTrainer.compute_loss

    def computed(*arguments: Any, **more: Any) -> Any:
        return compute(*arguments, **more) * float("nan")

    monkeypatch.setattr(trainer.QloraTrainer, "compute_loss", computed)
    data = write(tmp_path / "data.jsonl", *TALKS)

    message = "the loss is nan at step 1; lower --learning-rate"
    assert_refused(tmp_path, message, base, data, "--json")
