"""Words of the command line → checked values. Every refusal says what is allowed."""

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.load import BenchmarkError


@dataclass(frozen=True, slots=True)
class Target:
    """A server as named on the command line; ``model`` is None where the server shall tell."""

    name: str
    url: str
    model: str | None
    api_key: str | None = field(default=None, repr=False)


def parse_targets(
    ours: Target, peers: list[str], peer_keys: list[str], endpoint: str
) -> list[Target]:
    """Return our server and its peers (``NAME=URL[,MODEL]``), with their keys (``NAME=KEY``)."""
    keys: dict[str, str] = {}
    for word in peer_keys:
        name, key = _split_pair("--peer-key", word, "NAME=KEY")
        if name in keys:
            raise BenchmarkError(f"--peer-key: {name!r} has two keys; give one")
        keys[name] = key
    targets = [Target(ours.name, check_url(ours.url, endpoint), ours.model, ours.api_key)]
    for word in peers:
        name, rest = _split_pair("--peer", word, "NAME=URL[,MODEL]")
        url, _, model = rest.partition(",")
        if name in {target.name for target in targets}:
            raise BenchmarkError(f"--peer: the name {name!r} is taken; choose another")
        targets.append(Target(name, check_url(url, endpoint), model or None, keys.pop(name, None)))
    if keys:
        raise BenchmarkError(f"--peer-key: no --peer is called {', '.join(sorted(keys))}")
    return targets


def _split_pair(option: str, word: str, form: str) -> tuple[str, str]:
    name, separator, value = word.partition("=")
    if not (name and separator and value):
        # The word is not repeated: it may be a key.
        raise BenchmarkError(f"{option} must look like {form}")
    return name, value


def check_url(url: str, endpoint: str) -> str:
    """Return the URL without its last slash, if ``endpoint`` can follow it."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BenchmarkError(f"a URL must start with http:// or https:// and a host, got {url!r}")
    if parts.username or parts.query or parts.fragment:
        raise BenchmarkError("a URL must hold no user, query or fragment; keys have options")
    first = endpoint.split("/")[1]
    if parts.path.rstrip("/").endswith(f"/{first}"):
        raise BenchmarkError(f"leave /{first} off {url!r}: --endpoint {endpoint} brings it")
    return url.rstrip("/")


def parse_streams(word: str) -> tuple[int, ...]:
    """Read numbers of streams such as ``1,4,8``."""
    parts = [part.strip() for part in word.split(",")]
    numbers = tuple(int(part) for part in parts if part.isdecimal())
    if len(numbers) != len(parts) or 0 in numbers or len(set(numbers)) != len(numbers):
        raise BenchmarkError(f"--streams must be different numbers from 1 such as 1,4,8: {word!r}")
    return numbers


def read_questions(path: Path) -> tuple[str, ...]:
    """Return the lines of a text file that are not blank."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise BenchmarkError(f"--prompts {path} is not UTF-8: {error}") from None
    questions = tuple(line.strip() for line in lines if line.strip())
    if not questions:
        raise BenchmarkError(f"--prompts {path} holds no prompt; write one a line")
    return questions


def check_output(option: str, path: Path | None, package: str | None = None) -> None:
    """Refuse before the run what could not be written after it."""
    if path is not None and not path.parent.is_dir():
        raise BenchmarkError(f"{option}: there is no folder {path.parent}; make it first")
    if path is not None and package is not None and find_spec(package) is None:
        raise BenchmarkError(f"{option} needs {package}: pip install {package}")
