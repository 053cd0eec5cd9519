"""Which address is told to others, on machines of which the tests make up the networks."""

import socket
from typing import Any

import pytest
from starlette.requests import Request

from dbgpt_guanaco.errors import ConfigurationError
from dbgpt_guanaco.server import addresses
from dbgpt_guanaco.server.addresses import advertised_address, as_url_host, own_address
from dbgpt_guanaco.settings import ClusterSettings


def request_at(server: tuple[str, int | None] | None) -> Request:
    scope = {"type": "http", "server": server, "headers": [(b"host", b"evil.example:1")]}
    return Request(scope)


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        (("10.0.0.5", 8000), ("10.0.0.5", 8000)),
        (("::1", 8000), ("[::1]", 8000)),
        (("::ffff:10.0.0.5", 8000), ("10.0.0.5", 8000)),
        (None, ("127.0.0.1", 80)),
    ],
)
def test_the_own_address_is_the_connections_local_end_and_not_the_host_header(
    server: tuple[str, int] | None, expected: tuple[str, int]
) -> None:
    assert own_address(request_at(server), ClusterSettings()) == expected


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ({"advertise_host": "models.example"}, ("models.example", 8000)),
        ({"advertise_host": "fd00::7"}, ("[fd00::7]", 8000)),
        ({"advertise_host": "[fd00::7]"}, ("[fd00::7]", 8000)),
        ({"advertise_port": 80}, ("10.0.0.5", 80)),
    ],
)
def test_what_is_set_wins(setting: dict[str, Any], expected: tuple[str, int]) -> None:
    cluster = ClusterSettings(**setting)

    assert own_address(request_at(("10.0.0.5", 8000)), cluster) == expected
    assert advertised_address(cluster, ("10.0.0.5", 8000), "http://10.0.0.1") == expected


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name ``nobody`` is not known, which a real look-up would take seconds to find out."""
    look_up = socket.getaddrinfo

    def getaddrinfo(host: str, *args: Any, **kwargs: Any) -> Any:
        if host == "nobody":
            raise socket.gaierror(socket.EAI_NONAME, "not known")
        return look_up(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


REMOTE = "http://192.0.2.77:8000"  # an address for documentation, nobody's


@pytest.mark.parametrize(
    ("listening", "controller", "expected"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000", "127.0.0.1"),
        ("127.0.0.1", "http://localhost:8000", "127.0.0.1"),
        ("127.0.0.1", "http://127.0.1.1:8000", "127.0.0.1"),
        ("::1", "http://[::1]:8000", "[::1]"),
        ("0.0.0.0", "http://127.0.0.1:8000", "127.0.0.1"),
        ("10.0.0.5", "http://127.0.0.1:8000", "10.0.0.5"),
        ("10.0.0.5", REMOTE, "10.0.0.5"),
        ("fd00::5", REMOTE, "[fd00::5]"),
    ],
)
def test_the_address_that_is_listened_on_is_advertised_where_it_can_be(
    listening: str, controller: str, expected: str
) -> None:
    advertised = advertised_address(ClusterSettings(), (listening, 9), controller)

    assert advertised == (expected, 9)


@pytest.mark.parametrize("listening", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("controller", [REMOTE, "https://192.0.2.77", "http://nobody"])
@pytest.mark.usefixtures("nobody")
def test_loopback_is_never_told_to_another_machine(listening: str, controller: str) -> None:
    with pytest.raises(
        ConfigurationError, match=r"GUANACO_HOST=0\.0\.0\.0.*GUANACO_ADVERTISE_HOST"
    ):
        advertised_address(ClusterSettings(), (listening, 8000), controller)


# A machine with two networks and IPv6, seen from outside: where its ways start.
WAYS = {
    "10.1.0.1": "10.1.0.5",
    "10.2.0.1": "10.2.0.5",
    "10.3.0.1": "127.0.0.1",
    "fd00::1": "fd00::5",
}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "local_end", lambda _, remote: WAYS.get(remote[0]))


@pytest.mark.parametrize(
    ("listening", "controller", "expected"),
    [
        ("0.0.0.0", "http://10.1.0.1:8000", "10.1.0.5"),
        ("0.0.0.0", "http://10.2.0.1:8000", "10.2.0.5"),
        ("::", "http://10.2.0.1:8000", "10.2.0.5"),
        ("::", "http://[fd00::1]:8000", "[fd00::5]"),
    ],
)
@pytest.mark.usefixtures("machine")
def test_on_all_addresses_each_controller_is_told_the_one_on_its_way(
    listening: str, controller: str, expected: str
) -> None:
    assert advertised_address(ClusterSettings(), (listening, 9), controller) == (expected, 9)


@pytest.mark.parametrize(
    ("listening", "controller"),
    [
        ("0.0.0.0", "http://10.9.0.1:8000"),  # no network yet
        ("0.0.0.0", "http://10.3.0.1:8000"),  # a way that starts from loopback
        ("0.0.0.0", "http://[fd00::1]:8000"),  # listens on no address of that kind
        ("0.0.0.0", "http://nobody:8000"),
    ],
)
@pytest.mark.usefixtures("machine", "nobody")
def test_without_a_way_it_is_tried_later(listening: str, controller: str) -> None:
    with pytest.raises(OSError, match=r"no way|not known"):
        advertised_address(ClusterSettings(), (listening, 9), controller)


@pytest.mark.parametrize(
    ("host", "expected"),
    [("10.0.0.5", "10.0.0.5"), ("::1", "[::1]"), ("[::1]", "[::1]"), ("a.example", "a.example"),
     ("::ffff:10.0.0.5", "10.0.0.5")],
)  # fmt: skip
def test_a_host_is_written_as_dbgpt_puts_it_into_a_url(host: str, expected: str) -> None:
    assert as_url_host(host) == expected


@pytest.mark.parametrize(
    "wrong",
    [
        {"advertise_host": host}
        for host in ("http://10.0.0.5", "10.0.0.5:8000", "a/b", "a@b", "0.0.0.0", "::", "[::]",
                     "a b", "", "-a", "fd00::zz", "évil")
    ] + [
        {"controllers": (controller,)}
        for controller in ("10.0.0.5:8000", "http://", "ftp://10.0.0.5", "http://u:p@10.0.0.5",
                           "http://10.0.0.5:99999", "http://10.0.0.5:0", "http://10.0.0.5/?a=b")
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ClusterSettings(**wrong)
