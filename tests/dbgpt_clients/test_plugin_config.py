"""``provider = "guanaco"`` through DB-GPT's own reader of configurations.

Each test is a process of its own, because DB-GPT's registries live as long as the process.
"""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

HOOK = '[[hooks]]\npath = "dbgpt_guanaco.dbgpt_plugin.hook"\n'
MODELS = """
[[models.llms]]
name = "guanaco-test"
provider = "guanaco"
{llm}

[[models.embeddings]]
name = "text2vec"
provider = "guanaco"
{embedding}
"""
PARSE = """
import sys
from dataclasses import dataclass, field
from dbgpt.model.parameter import ModelsDeployParameters
from dbgpt.util.configure import ConfigurationManager

@dataclass
class Config:
    models: ModelsDeployParameters
    hooks: list = field(default_factory=list)

def parse():
    manager = ConfigurationManager.from_file(sys.argv[1])
    return manager.parse_config(Config, hook_section="hooks").models
"""


def run(
    folder: Path,
    code: str,
    *,
    hooks: str = HOOK,
    llm: str = "",
    embedding: str = "",
    environment: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run code that may call ``parse()`` on a TOML with one chat and one embedding model."""
    toml = folder / "dbgpt.toml"
    toml.write_text(hooks + MODELS.format(llm=llm, embedding=embedding))
    # DB-GPT prints a line of its own where CI is set.
    known = {k: v for k, v in os.environ.items() if k != "CI" and not k.startswith("GUANACO_")}
    return subprocess.run(
        [sys.executable, "-c", PARSE + textwrap.dedent(code), str(toml)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=known | (environment or {}),
    )


def output_of(folder: Path, code: str, **more: object) -> str:
    done = run(folder, code, **more)  # type: ignore[arg-type]
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_without_the_hook_the_provider_is_unknown(tmp_path: Path) -> None:
    done = run(tmp_path, "parse()", hooks="")

    assert done.returncode != 0
    assert "Unknown type value: guanaco" in done.stderr


def test_with_the_hook_both_kinds_resolve(tmp_path: Path) -> None:
    shown = output_of(
        tmp_path,
        """
        models = parse()
        print(type(models.llms[0]).__name__, type(models.embeddings[0]).__name__)
        """,
    )

    assert shown == "GuanacoDeployModelParameters GuanacoEmbeddingParameters"


def test_defaults_are_the_local_server_without_a_key(tmp_path: Path) -> None:
    shown = output_of(
        tmp_path,
        """
        models = parse()
        for each in (models.llms[0], models.embeddings[0]):
            print(each.api_base, each.api_key, each.real_provider_model_name)
        """,
    )

    assert shown.splitlines() == [
        "http://127.0.0.1:8000/v1 EMPTY guanaco-test",
        "http://127.0.0.1:8000/v1 EMPTY text2vec",
    ]


def test_the_environment_sets_where_the_server_is(tmp_path: Path) -> None:
    shown = output_of(
        tmp_path,
        """
        models = parse()
        for each in (models.llms[0], models.embeddings[0]):
            print(each.api_base, each.api_key)
        """,
        environment={"GUANACO_API_BASE": "http://gpu:1/v1", "GUANACO_API_KEY": "k"},
    )

    assert shown.splitlines() == ["http://gpu:1/v1 k"] * 2


def test_the_toml_wins_over_the_environment(tmp_path: Path) -> None:
    shown = output_of(
        tmp_path,
        """
        models = parse()
        llm, embedding = models.llms[0], models.embeddings[0]
        print(llm.api_base, llm.backend, llm.context_length, llm.real_provider_model_name)
        print(embedding.api_url, embedding.real_provider_model_name)
        """,
        llm='api_base = "http://a:1/v1"\nbackend = "guanaco-7b"\ncontext_length = 512',
        embedding='api_url = "http://b:2/v1/embeddings"\nbackend = "all-MiniLM-L6-v2"',
        environment={"GUANACO_API_BASE": "http://gpu:1/v1"},
    )

    assert shown.splitlines() == [
        "http://a:1/v1 guanaco-7b 512 guanaco-7b",
        "http://b:2/v1/embeddings all-MiniLM-L6-v2",
    ]


def test_the_key_is_not_shown(tmp_path: Path) -> None:
    shown = output_of(tmp_path, "print(parse().llms[0])", llm='api_key = "a-secret-key"')

    assert "guanaco-test" in shown
    assert "a-secret-key" not in shown


def test_dbgpt_finds_the_adapters(tmp_path: Path) -> None:
    shown = output_of(
        tmp_path,
        """
        parse()
        from dbgpt.model.adapter.base import get_embedding_adapter
        from dbgpt.model.adapter.model_adapter import get_llm_model_adapter
        adapter = get_llm_model_adapter("any", None, use_fastchat=False, model_type="guanaco")
        print(type(adapter).__name__, adapter.support_async(), adapter.model_type())
        print(get_embedding_adapter("guanaco", False, "any", "any").model_param_class().__name__)
        print(get_embedding_adapter("guanaco", True, "any", "any"))
        """,
    )

    assert shown.splitlines() == [
        "GuanacoAdapter True proxy",
        "GuanacoEmbeddingParameters",
        "None",
    ]


def test_the_model_page_can_describe_the_parameters(tmp_path: Path) -> None:
    shown = output_of(
        tmp_path,
        """
        parse()
        from dbgpt.model.adapter.base import get_supported_models
        for kind in ("llm", "text2vec"):
            found = [m for m in get_supported_models(kind) if m.provider == "guanaco"]
            print(found[0].model, "api_base" in [p.param_name for p in found[0].params])
        """,
    )

    assert shown.splitlines() == ["guanaco-7b True", "all-MiniLM-L6-v2 True"]


@pytest.mark.parametrize(
    "again",
    [
        "parse()",
        "import dbgpt_guanaco.dbgpt_plugin as p; p.hook({}); p.hook({})",
        "import importlib, dbgpt_guanaco.dbgpt_plugin as p; importlib.reload(p).hook({})",
        "for name in [n for n in sys.modules if n.startswith('dbgpt_guanaco')]:\n"
        "    del sys.modules[name]\n"
        "parse()",
        "import importlib.util, dbgpt_guanaco.dbgpt_plugin as p\n"
        "spec = importlib.util.spec_from_file_location('another_name', p.__file__)\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "module.hook({})",
    ],
    ids=["parsed twice", "hook twice", "reloaded", "imported anew", "a second name"],
)
def test_a_second_time_is_harmless(tmp_path: Path, again: str) -> None:
    code = [
        "parse()",
        again,
        "from dbgpt.model.adapter.base import model_adapters, embedding_adapters",
        "mine = [e.model_adapter for e in model_adapters]",
        "print(sum(type(a).__name__ == 'GuanacoAdapter' for a in mine))",
        "classes = [e.model_adapter.model_param_class() for e in embedding_adapters]",
        "print(sum(c.__name__ == 'GuanacoEmbeddingParameters' for c in classes))",
        "print(type(parse().llms[0]).__name__)",
    ]
    shown = output_of(tmp_path, "\n".join(code))

    assert shown.splitlines()[-3:] == ["1", "1", "GuanacoDeployModelParameters"]


def test_the_hook_returns_the_configuration_as_it_was(tmp_path: Path) -> None:
    code = "import dbgpt_guanaco.dbgpt_plugin as p; c = {'a': [1]}; print(p.hook(c) is c, c)"

    assert output_of(tmp_path, code) == "True {'a': [1]}"


def test_a_parameter_that_the_hook_does_not_know_is_refused(tmp_path: Path) -> None:
    done = run(tmp_path, "parse()", hooks=HOOK + "params = { api_base = 'http://a:1' }\n")

    assert done.returncode != 0
    assert "unexpected keyword argument 'api_base'" in done.stderr


def test_the_plugin_needs_none_of_the_servers_modules(tmp_path: Path) -> None:
    code = """
    class Refuse:
        def find_spec(self, name, path=None, target=None):
            refused = ("torch", "transformers", "sse_starlette", "dbgpt_guanaco.server",
                       "dbgpt_guanaco.engine", "dbgpt_guanaco.settings", "dbgpt_guanaco.types")
            if name.startswith("dbgpt_guanaco") and name.startswith(refused):
                raise AssertionError(name)
            if name in ("torch", "transformers"):
                raise ImportError(name)
    sys.meta_path.insert(0, Refuse())
    parse()
    print(sorted(n.split(".")[1] for n in sys.modules if n.startswith("dbgpt_guanaco."))[0])
    """

    assert output_of(tmp_path, code) == "dbgpt_plugin"


@pytest.mark.parametrize("section", ["service.model.worker", "service.model.api"])
def test_the_hook_of_a_section_serves_the_models_read_after_it(
    tmp_path: Path, section: str
) -> None:
    """As ``dbgpt start worker`` and its siblings read their files."""
    hooks = f'[[{section}.hooks]]\npath = "dbgpt_guanaco.dbgpt_plugin.hook"\n'
    kind = {"service.model.worker": "ModelWorkerParameters"}.get(
        section, "ModelAPIServerParameters"
    )
    code = f"""
    from dbgpt.model import parameter
    manager = ConfigurationManager.from_file(sys.argv[1])
    manager.parse_config(parameter.{kind}, prefix="{section}", hook_section="hooks")
    print(type(manager.parse_config(Config).models.llms[0]).__name__)
    """

    assert output_of(tmp_path, code, hooks=hooks) == "GuanacoDeployModelParameters"
