"""A client names a LoRA by a path; nothing outside the folder for LoRAs is ever looked at."""

from pathlib import Path

import pytest
from tiny_models import make_lora

from dbgpt_guanaco.engine.loras import find_below
from dbgpt_guanaco.errors import InvalidRequestError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder with one LoRA in it, beside another LoRA that is nobody's business."""
    make_lora(tmp_path / "secret")
    make_lora(tmp_path / "loras" / "team" / "sql")
    return tmp_path / "loras"


@pytest.mark.parametrize("path", ["team/sql", "./team/sql", "team/../team/sql", "team//sql/"])
def test_a_lora_below_the_folder_is_found(root: Path, path: str) -> None:
    assert find_below(root, path) == root / "team" / "sql"


@pytest.mark.parametrize(
    "path",
    [
        "..",
        ".",
        "",
        "../secret",
        "team/../../secret",
        "{outside}",
        "/etc",
        "//etc",
        "..\\secret",
        "C:\\secret",
        "team/sql\0",
        "\0",
        "team\n/sql",
        "no-such",
        "team",
        "~",
        "a" * 300,
        "/".join(["a"] * 500),
    ],
)
def test_every_other_path_is_refused(root: Path, path: str) -> None:
    with pytest.raises(InvalidRequestError, match="lora_path"):
        find_below(root, path.format(outside=root.parent / "secret"))


def test_a_link_to_a_folder_outside_is_refused(root: Path) -> None:
    (root / "linked").symlink_to(root.parent / "secret")

    with pytest.raises(InvalidRequestError, match="leads out"):
        find_below(root, "linked")


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "tokenizer.json"])
def test_a_link_to_a_file_outside_is_refused(root: Path, name: str) -> None:
    folder = root / "team" / "sql"
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(root.parent / "secret" / "adapter_model.safetensors")

    with pytest.raises(InvalidRequestError, match="holds a link"):
        find_below(root, "team/sql")


def test_a_link_that_stays_inside_is_followed(root: Path) -> None:
    (root / "current").symlink_to("team/sql")

    assert find_below(root, "current") == root / "team" / "sql"


def test_a_link_that_goes_round_is_refused(root: Path) -> None:
    (root / "round").symlink_to("round")

    with pytest.raises(InvalidRequestError, match="lora_path"):
        find_below(root, "round")
