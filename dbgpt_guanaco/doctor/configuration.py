"""Settings: readable, known, without contradiction, and kept from others."""

import difflib
import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from io import StringIO
from pathlib import Path

from dotenv import dotenv_values
from dotenv.parser import parse_stream

from dbgpt_guanaco.doctor.findings import Finding, failure, ok, warning
from dbgpt_guanaco.doctor.setup import Setup
from dbgpt_guanaco.environment import load_settings, setting_names
from dbgpt_guanaco.errors import ConfigurationError
from dbgpt_guanaco.server.addresses import literal_address
from dbgpt_guanaco.settings import Settings

BOM = b"\xef\xbb\xbf"
# Such a share of letters in common is a slip of the finger; DB-GPT's own keys share fewer.
NEARLY = 0.88
SECRET = ("KEY", "TOKEN", "PASSWORD", "SECRET")


def values(setup: Setup) -> Finding:
    """Read the settings as the server does, and look for those that contradict each other."""
    slips = list(_nearly_known(setup.env_file))
    try:
        settings = load_settings(setup.env_file)
    except ConfigurationError as error:
        return failure("\n".join([str(error), *slips]))
    problems = [*_contradictions(settings), *slips]
    if problems:
        return warning("\n".join(problems))
    given = _given(setup.env_file)
    if not given:
        return ok("all at their defaults")
    return ok("; ".join(f"{place}: {', '.join(names)}" for place, names in given.items()))


def env_file(setup: Setup) -> Finding:
    """Look at the file itself: lines that are not read, and who else may read or write it."""
    path = setup.env_file
    if not path.is_file():
        return ok(f"there is none in {path.absolute().parent}")
    try:
        text = path.read_bytes().removeprefix(BOM).decode()
    except UnicodeDecodeError:
        return failure(f"{path} is not UTF-8", f"iconv -f gb18030 -t utf-8 {path} > utf8.env")
    if path.read_bytes().startswith(BOM):
        return failure(
            f"{path} begins with a byte order mark, so its first line is not read",
            f"sed -i '1s/^\\xef\\xbb\\xbf//' {path}",
        )
    if unread := list(_unread(text)):
        return warning("\n".join(unread))
    return _privacy(path, holds_secret=_holds_secret(path)) or ok(f"{path.absolute()}")


def privacy(path: Path) -> Finding | None:
    """Return who else may read or write a file that holds a secret; None where nobody may."""
    return _privacy(path, holds_secret=True)


def _privacy(path: Path, *, holds_secret: bool) -> Finding | None:
    found = path.stat()
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return failure(
            f"other users of this machine can change {path}, and so what this server does",
            f"chmod 600 {path}",
        )
    if found.st_uid not in (os.geteuid(), 0):
        return warning(f"{path} belongs to another user, who can change what this server does")
    if holds_secret and found.st_mode & (stat.S_IRGRP | stat.S_IROTH):
        return warning(
            f"other users of this machine can read {path}, which holds keys", f"chmod 600 {path}"
        )
    return None


def _contradictions(settings: Settings) -> Iterator[str]:
    model, engine, cluster = settings.model, settings.engine, settings.cluster
    if model.max_gpu_memory and model.device == "cpu":
        yield "MAX_GPU_MEMORY has no effect with GUANACO_DEVICE=cpu"
    if engine.kv_cache and engine.engine == "streaming":
        yield "GUANACO_KV_CACHE has no effect with GUANACO_ENGINE=streaming"
    if len(engine.loras) > engine.max_loras:
        yield f"GUANACO_LORAS names {len(engine.loras)}, and GUANACO_MAX_LORAS={engine.max_loras}"
    advertised = cluster.advertise_host or cluster.advertise_port
    address = literal_address(settings.server.host)
    is_alone = address is not None and address.is_loopback
    if cluster.worker_networks and is_alone and not advertised:
        yield (
            f"GUANACO_WORKER_NETWORKS opens this server to other machines, and GUANACO_HOST="
            f"{settings.server.host} keeps them out"
        )
    doubled = [alias for alias in model.aliases if alias in dict(engine.loras)]
    if doubled:
        yield f"{', '.join(doubled)} is both in GUANACO_ALIASES and in GUANACO_LORAS"
    if model.trust_remote_code:
        yield "GUANACO_TRUST_REMOTE_CODE runs Python code of the model's folder in this server"


def _nearly_known(path: Path) -> Iterator[str]:
    """Tell of names without our prefix that are nearly a setting, and so are ignored."""
    known = setting_names()
    for name in dotenv_values(path):
        if name.upper() not in known and not name.startswith("GUANACO_"):
            near = difflib.get_close_matches(name.upper(), known, n=1, cutoff=NEARLY)
            yield from (f"{name} in {path} is no setting; is {right} meant?" for right in near)
    if "HF_ENDPOINT" in dotenv_values(path) and "HF_ENDPOINT" not in os.environ:
        yield f"HF_ENDPOINT has no effect in {path}; export it instead"


def _given(path: Path) -> Mapping[str, list[str]]:
    """Return names of settings by where they are set; the environment wins."""
    known = setting_names()
    outside = sorted(name for name in os.environ if name.upper() in known)
    upper = {name.upper() for name in outside}
    inside = [n for n, value in dotenv_values(path).items() if n.upper() in known and value]
    shadowed = [name for name in inside if name.upper() in upper]
    places = {
        "from the environment": outside,
        f"from {path}": [name for name in inside if name not in shadowed],
        f"in {path}, but the environment wins": shadowed,
    }
    return {place: names for place, names in places.items() if names}


def _unread(text: str) -> Iterator[str]:
    bindings = list(parse_stream(StringIO(text)))
    for binding in bindings:
        if binding.error or (binding.key and binding.value is None):
            before = binding.original.string.removesuffix(binding.original.string.lstrip())
            number = binding.original.line + before.count("\n")
            yield f"line {number} is not read: write NAME=value"
    counted = Counter(b.key for b in bindings if b.key)
    for name, times in counted.items():
        if times > 1:
            yield f"{name} stands there {times} times; the last one counts"


def _holds_secret(path: Path) -> bool:
    return any(
        value and any(part in name.upper() for part in SECRET)
        for name, value in dotenv_values(path).items()
    )
