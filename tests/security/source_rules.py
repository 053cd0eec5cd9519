"""What no line of this package may do, told from its syntax tree, with where it is allowed."""

import ast
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent.parent.parent / "dbgpt_guanaco"

# Classes of transformers that look for code in a model's folder.
AUTO = ("AutoConfig", "AutoModel", "AutoTokenizer", "AutoProcessor")

# The kinds of nodes that a rule may match; most nodes are of others.
LOOKED_AT = (
    ast.Assert, ast.Attribute, ast.Call, ast.Dict, ast.Import, ast.ImportFrom, ast.keyword,
)  # fmt: skip

Rule = Callable[[ast.AST], bool]


def name_of(node: ast.AST) -> str:
    """Return a dotted name as it is written: ``torch.load``; nothing for anything else."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=attribute):
            return f"{name_of(value)}.{attribute}" if name_of(value) else attribute
        case _:
            return ""


def keyword(call: ast.Call, name: str) -> ast.expr | None:
    return next((k.value for k in call.keywords if k.arg == name), None)


def is_constant(node: ast.expr | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def calls(*names: str) -> Rule:
    """Match calls of these names, with or without what stands before a dot."""
    return lambda node: (
        isinstance(node, ast.Call)
        and (name_of(node.func) in names or name_of(node.func).rpartition(".")[2] in names)
    )


def calls_exactly(*names: str) -> Rule:
    return lambda node: isinstance(node, ast.Call) and name_of(node.func) in names


def imports(*modules: str) -> Rule:
    """Match imports of these modules and of what is in them."""

    def rule(node: ast.AST) -> bool:
        named = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            named = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        return any(n == m or n.startswith(f"{m}.") for n in named for m in modules)

    return rule


def any_of(*rules: Rule) -> Rule:
    return lambda node: any(rule(node) for rule in rules)


def _loads_a_pickle(node: ast.AST) -> bool:
    if not isinstance(node, ast.Attribute) or name_of(node.value) != "pickle":
        return False
    return not node.attr.endswith("Error")


def _torch_load_of_anything(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call) or name_of(node.func) != "torch.load":
        return False
    return not is_constant(keyword(node, "weights_only"), True)


def _has_true(name: str) -> Rule:
    """Match ``name=True`` in a call and ``"name": True`` in a dict."""

    def rule(node: ast.AST) -> bool:
        if isinstance(node, ast.keyword):
            return node.arg == name and is_constant(node.value, True)
        if isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            return any(is_constant_text(k, name) and is_constant(v, True) for k, v in pairs)
        return False

    return rule


def is_constant_text(node: ast.expr | None, text: str) -> bool:
    return isinstance(node, ast.Constant) and node.value == text


def _from_pretrained_unsaid(node: ast.AST) -> bool:
    """Match an Auto class that may ask the terminal whether to run code."""
    if not isinstance(node, ast.Call) or not name_of(node.func).startswith(AUTO):
        return False
    loads = name_of(node.func).endswith((".from_pretrained", ".from_config"))
    has_options = any(k.arg is None for k in node.keywords)  # **options, which say so themselves
    return loads and keyword(node, "trust_remote_code") is None and not has_options


def _shell(node: ast.AST) -> bool:
    return _has_true("shell")(node) or calls_exactly("os.system", "os.popen")(node)


def _dynamic_import(node: ast.AST) -> bool:
    is_import = any_of(calls("import_module"), calls_exactly("__import__"))(node)
    return is_import and isinstance(node, ast.Call) and not isinstance(node.args[0], ast.Constant)


# Each rule: what it finds, and the modules in which that is what it should be.
RULES: Mapping[str, tuple[Rule, frozenset[str]]] = {
    "eval and exec": (calls_exactly("eval", "exec", "compile", "builtins.eval"), frozenset()),
    "pickle": (
        any_of(
            _loads_a_pickle,
            imports("cloudpickle", "dill", "joblib", "marshal", "shelve", "multiprocessing",
                    "concurrent.futures.process", "torch.distributed", "xmlrpc", "zmq"),
            lambda n: isinstance(n, ast.ImportFrom) and n.module == "pickle",
            _has_true("allow_pickle"),
        ),
        frozenset(),
    ),
    "torch.load of anything but weights": (_torch_load_of_anything, frozenset()),
    "trust_remote_code": (_has_true("trust_remote_code"), frozenset()),
    "an unsaid trust_remote_code": (_from_pretrained_unsaid, frozenset()),
    "yaml": (imports("yaml"), frozenset()),
    "a shell": (_shell, frozenset()),
    "processes": (
        imports("subprocess"),
        frozenset({"doctor/gpu.py", "doctor/running.py", "engine/structure_trial.py",
                   "engine/kernels/compiled.py"}),
    ),
    "modules by a name that is computed": (
        _dynamic_import, frozenset({"doctor/__main__.py", "doctor/libraries.py"})
    ),
    # The compiled decoder; functions of the C library that this process runs with.
    "native libraries": (
        any_of(calls("CDLL"), imports("cffi")),
        frozenset({"engine/kernels/compiled.py", "server/heap.py"}),
    ),
    "templates": (
        any_of(imports("jinja2", "mako"), calls("from_string")), frozenset()
    ),
    # To whom this package speaks: controllers, the hub, itself, and from DB-GPT the server.
    # (surroundings.py reads from urllib which proxies are set.)
    "HTTP clients": (
        imports("httpx", "requests", "aiohttp", "urllib.request", "urllib3", "http.client"),
        frozenset({"server/registration.py", "doctor/port.py", "doctor/model.py",
                   "doctor/controllers.py", "doctor/surroundings.py",
                   "dbgpt_plugin/connection.py"}),
    ),
    "the hub": (
        imports("huggingface_hub"),
        frozenset({"adapters/resolve.py", "adapters/hub_headers.py", "adapters/download.py",
                   "adapters/progress_bars.py",
                   "doctor/model.py", "doctor/disk.py"}),
    ),
    "sockets": (
        imports("socket", "socketserver", "ssl", "telnetlib", "ftplib", "smtplib"),
        frozenset({"server/__main__.py", "server/addresses.py", "server/connections.py",
                   "server/graceful.py", "server/supervisor.py",  # take the port; tell systemd
                   "doctor/port.py", "dbgpt_plugin/connection.py"}),
    ),
    "files sent or taken over HTTP": (
        any_of(
            calls("FileResponse", "StaticFiles", "UploadFile", "File", "Form"),
            imports("starlette.staticfiles", "starlette.formparsers"),
            imports("multipart", "python_multipart"),
            calls("form"),
        ),
        frozenset(),
    ),
    "unsafe temporary files": (calls("mktemp"), frozenset()),
}  # fmt: skip
# Gone under `python -O`, so it may state what we know and not guard what a client sends.
SERVER_RULES: Mapping[str, Rule] = {"assert": lambda node: isinstance(node, ast.Assert)}


def violations(nodes: Iterable[ast.AST], rule: Rule) -> Iterator[int]:
    """Yield the lines at which a rule is broken."""
    return (getattr(node, "lineno", 0) for node in nodes if rule(node))


@cache
def modules() -> Mapping[str, tuple[ast.AST, ...]]:
    """Return the nodes of every module of the package, by its path."""
    return {
        path.relative_to(PACKAGE).as_posix(): tuple(
            node
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, LOOKED_AT)
        )
        for path in sorted(PACKAGE.rglob("*.py"))
    }
