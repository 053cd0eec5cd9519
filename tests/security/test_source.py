"""Every line of the package, held against what none of them may do."""

import ast
from collections.abc import Mapping, Sequence

import pytest

from security.source_rules import RULES, SERVER_RULES, modules, violations

MODULES = modules()


@pytest.mark.parametrize("rule", RULES)
def test_no_module_does_this(rule: str) -> None:
    matches, allowed = RULES[rule]

    found = {path: list(violations(tree, matches)) for path, tree in MODULES.items()}
    found = {path: lines for path, lines in found.items() if lines}

    assert set(found) <= allowed, found
    # What is allowed and not done (any more) is not to stay allowed.
    assert {path for path in allowed if path in MODULES} <= set(found)


@pytest.mark.parametrize("rule", SERVER_RULES)
def test_no_module_of_the_server_does_this(rule: str) -> None:
    trees = {path: tree for path, tree in MODULES.items() if path.startswith("server/")}
    assert len(trees) > 20

    found = {path: list(violations(tree, SERVER_RULES[rule])) for path, tree in trees.items()}

    assert not {path: lines for path, lines in found.items() if lines}


FORBIDDEN = {
    "eval and exec": ["eval(text)", "exec(text)", "compile(text, '', 'exec')"],
    "pickle": [
        "pickle.loads(data)", "pickle.Unpickler(file)", "from pickle import loads", "import dill",
        "numpy.load(file, allow_pickle=True)", "from multiprocessing import Pool",
        "import torch.distributed", "from torch import distributed",
    ],
    "torch.load of anything but weights": [
        "torch.load(path)", "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=x)",
    ],
    "trust_remote_code": [
        "AutoConfig.from_pretrained(path, trust_remote_code=True)", "{'trust_remote_code': True}",
    ],
    "an unsaid trust_remote_code": [
        "AutoModelForCausalLM.from_pretrained(path)", "AutoModel.from_config(config)",
    ],
    "yaml": ["import yaml", "from yaml import load"],
    "a shell": ["subprocess.run(text, shell=True)", "os.system(text)", "os.popen(text)"],
    "processes": ["import subprocess", "from subprocess import run"],
    "modules by a name that is computed": ["import_module(name)", "importlib.import_module(name)",
                                           "__import__(name)"],
    "native libraries": ["ctypes.CDLL(path)", "CDLL(path)"],
    "templates": ["import jinja2", "environment.from_string(text)"],
    "HTTP clients": ["import httpx", "from urllib.request import urlopen",
                     "from urllib import request"],
    "the hub": ["from huggingface_hub import snapshot_download"],
    "sockets": ["import socket"],
    "files sent or taken over HTTP": ["FileResponse(path)", "await request.form()",
                                      "body: UploadFile = File()"],
    "unsafe temporary files": ["tempfile.mktemp()"],
    "assert": ["assert request.is_admin"],
}  # fmt: skip
HARMLESS = {
    "eval and exec": ["model.eval()", "re.compile(text)"],
    "pickle": ["except pickle.UnpicklingError: pass", "import pickle", "numpy.load(file)"],
    "torch.load of anything but weights": ["torch.load(path, weights_only=True)",
                                           "json.load(file)"],
    "trust_remote_code": ["f(trust_remote_code=False)", "f(trust_remote_code=settings.trust)"],
    "an unsaid trust_remote_code": [
        "AutoTokenizer.from_pretrained(path, trust_remote_code=False)",
        "GenerationConfig.from_pretrained(path)",
    ],
    "a shell": ["subprocess.run([name], shell=False)"],
    "modules by a name that is computed": ["import_module('torch')"],
    "HTTP clients": ["from urllib.parse import urlsplit"],
}  # fmt: skip


def parsed(text: str) -> ast.Module:
    before = "try: 1\n " if text.startswith("except") else ""
    return ast.parse(f"async def f():\n {before}{text}")


def cases(texts: Mapping[str, Sequence[str]]) -> list[tuple[str, str]]:
    return [(rule, text) for rule, listed in texts.items() for text in listed]


@pytest.mark.parametrize(("rule", "text"), cases(FORBIDDEN))
def test_a_rule_finds_what_it_is_for(rule: str, text: str) -> None:
    matches = SERVER_RULES[rule] if rule in SERVER_RULES else RULES[rule][0]

    assert list(violations(ast.walk(parsed(text)), matches))


@pytest.mark.parametrize(("rule", "text"), cases(HARMLESS))
def test_a_rule_finds_nothing_else(rule: str, text: str) -> None:
    assert not list(violations(ast.walk(parsed(text)), RULES[rule][0]))


def test_every_rule_was_tried() -> None:
    assert set(FORBIDDEN) == {*RULES, *SERVER_RULES}
