import hmac
import logging
import stat
from pathlib import Path

import pytest
from pydantic import SecretStr

from dbgpt_guanaco.errors import ConfigurationError
from dbgpt_guanaco.server.keys import LOOK_EVERY_S, Keys
from dbgpt_guanaco.settings import AccessSettings

ONE, TWO, THREE = "the-first-key-of-all", "the-second-key-of-all", "dGhlIHRoaXJkIGtleSA=="


class Clock:
    """Moves when it is told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def file_of(folder: Path, *lines: str) -> Path:
    file = folder / "keys"
    file.write_text("".join(f"{line}\n" for line in lines))
    file.chmod(0o600)
    return file


def owner(keys: Keys, key: str) -> str | None:
    caller = keys.find(key)
    return caller.name if caller else None


def test_a_file_names_the_owners_of_its_keys(tmp_path: Path) -> None:
    file = file_of(
        tmp_path, "# ours", "", f"ann: {ONE}", f"  {TWO}  # of the lab", f"the lab at 2:{THREE}"
    )

    keys = Keys(AccessSettings(api_keys_file=file))

    assert [owner(keys, key) for key in (ONE, TWO, THREE)] == ["ann", "line 4", "the lab at 2"]
    assert owner(keys, "") is owner(keys, ONE[:-1]) is owner(keys, "ann") is None


def test_only_the_admin_s_key_is_the_admin_s(tmp_path: Path) -> None:
    keys = Keys(
        AccessSettings(
            api_keys=(SecretStr(ONE),),
            admin_key=SecretStr(TWO),
            api_keys_file=file_of(tmp_path, f"admin: {THREE}"),
        )
    )

    admins = [bool((caller := keys.find(key)) and caller.is_admin) for key in (ONE, TWO, THREE)]
    assert admins == [False, True, False]


def test_each_key_is_compared_with_each_whichever_is_right(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared: list[int] = []

    def counted(one: bytes, other: bytes) -> bool:
        compared.append(len(one) + len(other))
        return one == other

    monkeypatch.setattr(hmac, "compare_digest", counted)
    keys = Keys(AccessSettings(api_keys=(SecretStr(ONE), SecretStr(TWO), SecretStr(THREE))))

    for key in (ONE, THREE, "", "x" * 10_000):
        compared.clear()
        keys.find(key)
        assert compared == [64] * 3  # hashes of 32 bytes, so no length is told either


async def test_a_changed_file_is_read_again_within_a_second(tmp_path: Path) -> None:
    clock, file = Clock(), file_of(tmp_path, f"ann: {ONE}")
    keys = Keys(AccessSettings(api_keys_file=file), clock)

    file_of(tmp_path, f"bob: {TWO}")
    await keys.refresh()
    assert owner(keys, ONE) == "ann"  # it was looked at just now

    clock.now = LOOK_EVERY_S
    await keys.refresh()
    assert (owner(keys, ONE), owner(keys, TWO)) == (None, "bob")


@pytest.mark.parametrize("broken", ["short", "ann: two words", f"ann: {ONE}\nbob: {ONE}", None])
async def test_a_file_that_cannot_be_read_any_more_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, broken: str | None
) -> None:
    clock, file = Clock(), file_of(tmp_path, f"ann: {ONE}")
    keys = Keys(AccessSettings(api_keys_file=file), clock)
    if broken is None:
        file.unlink()
    else:
        file_of(tmp_path, broken)

    clock.now = LOOK_EVERY_S
    await keys.refresh()

    assert owner(keys, ONE) == "ann"
    assert "the keys remain as they were" in caplog.text


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("ann: short", "line 1: a key has at least 16"),
        ("ann: this key has blanks", "line 1: write `name: key`"),
        ("ann: bob: a-key-of-somebody", "line 1: write `name: key`"),
        (f"ann: {ONE}\nbob: {ONE}", "'ann' and 'bob' have the same key"),
    ],
)
def test_a_wrong_line_is_told_without_the_key(tmp_path: Path, line: str, told: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        Keys(AccessSettings(api_keys_file=file_of(tmp_path, line)))

    assert told in str(refused.value)
    assert line.split(": ")[-1] not in str(refused.value)


def test_a_file_that_is_not_there_is_an_error_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"GUANACO_API_KEYS_FILE=.*No such file"):
        Keys(AccessSettings(api_keys_file=tmp_path / "none"))


def test_one_key_is_not_two_people_s(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="the same key"):
        Keys(AccessSettings(api_keys=(SecretStr(ONE),), admin_key=SecretStr(ONE)))


def test_names_are_logged_and_keys_are_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    file = file_of(tmp_path, f"ann: {ONE}")

    Keys(AccessSettings(api_keys=(SecretStr(TWO),), api_keys_file=file))

    assert "ann" in caplog.text
    assert ONE not in caplog.text
    assert TWO not in caplog.text
    assert "chmod" not in caplog.text


@pytest.mark.parametrize("mode", [stat.S_IRGRP, stat.S_IROTH])
def test_a_file_that_others_can_read_is_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int
) -> None:
    file = file_of(tmp_path, f"ann: {ONE}")
    file.chmod(0o600 | mode)

    Keys(AccessSettings(api_keys_file=file))

    assert f"chmod 600 {file}" in caplog.text
