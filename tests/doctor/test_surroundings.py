"""What the process inherits: locale, clock, limits, proxies."""

import resource
import sys
from datetime import datetime, tzinfo
from types import SimpleNamespace

import pytest

from dbgpt_guanaco.doctor import surroundings
from dbgpt_guanaco.doctor.setup import Setup
from dbgpt_guanaco.settings import EngineSettings, Settings


@pytest.fixture(autouse=True)
def _utf8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(encoding="utf-8"))
    monkeypatch.setattr("locale.getpreferredencoding", lambda _: "UTF-8")
    monkeypatch.delenv("TZ", raising=False)


def test_utf_8_and_a_clock_that_goes_are_right() -> None:
    finding = surroundings.locale_and_clock(Setup())

    assert finding.status == "ok"
    assert finding.text.startswith("UTF-8, 20")


@pytest.mark.parametrize("encoding", ["ANSI_X3.4-1968", "ISO-8859-1", "gb18030"])
def test_another_encoding_is_a_warning(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    monkeypatch.setattr("locale.getpreferredencoding", lambda _: encoding)

    finding = surroundings.locale_and_clock(Setup())

    assert finding.status == "warning"
    assert encoding.lower() in finding.text.replace("_", "-") or "x3.4-1968" in finding.text
    assert finding.remedy == "export PYTHONUTF8=1"


def test_a_clock_that_stands_long_past_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    class Past(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> "Past":
            return cls(2000, 1, 1, tzinfo=tz)

    monkeypatch.setattr(surroundings, "datetime", Past)

    finding = surroundings.locale_and_clock(Setup())

    assert finding.status == "failure"
    assert "2000-01-01" in finding.text


@pytest.mark.parametrize("zone", ["Asia/Shanghai", "UTC", "CST-8", ":/etc/localtime", ""])
def test_a_zone_that_there_is_is_right(monkeypatch: pytest.MonkeyPatch, zone: str) -> None:
    monkeypatch.setenv("TZ", zone)

    assert surroundings.locale_and_clock(Setup()).status == "ok"


def test_a_zone_that_there_is_not_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Shangai")

    finding = surroundings.locale_and_clock(Setup())

    assert finding.status == "warning"
    assert "TZ=Asia/Shangai" in finding.text


@pytest.mark.parametrize(
    ("soft", "hard", "slots", "status", "remedy"),
    [
        (1024, 4096, 32, "ok", ""),
        (1023, 4096, 32, "warning", "ulimit -n 1024"),
        (256, 256, 32, "warning", "LimitNOFILE=1024"),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 256, "ok", ""),
        (20_000, 20_000, 256, "ok", ""),
    ],
)
def test_few_open_files_are_a_warning(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, slots: int, status: str, remedy: str
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (soft, hard))
    setup = Setup(settings=Settings(engine=EngineSettings(slots=slots)))

    finding = surroundings.open_files(setup)

    assert finding.status == status
    assert finding.remedy.startswith(remedy)


def test_many_clients_need_more_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (1024, 4096))
    setup = Setup(settings=Settings(engine=EngineSettings(slots=256, queue_size=1000)))

    assert surroundings.open_files(setup).remedy == "ulimit -n 2768"


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_a_proxy_that_would_catch_calls_to_this_machine_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", "intranet.example")

    finding = surroundings.proxies(Setup())

    assert finding.status == "warning"
    assert name.upper() in finding.text
    assert finding.remedy == "export NO_PROXY=intranet.example,127.0.0.1,localhost"


@pytest.mark.parametrize("bypassed", ["127.0.0.1,localhost", "localhost, 127.0.0.1", "*"])
def test_a_proxy_that_leaves_this_machine_alone_is_right(
    monkeypatch: pytest.MonkeyPatch, bypassed: str
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", bypassed)

    assert surroundings.proxies(Setup()).status == "ok"


def test_a_proxy_for_https_alone_catches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")

    assert surroundings.proxies(Setup()).status == "ok"
