"""DB-GPT and this server, started once for each way, and what a person has put into DB-GPT."""

import importlib.util
from collections.abc import Iterator

import pytest

from e2e.belongings import PASSAGES, SPACE, write_database
from e2e.deployment import MODEL, Deployment, deployed
from e2e.ways import WAYS, Way
from e2e.web_api import WebApi

if importlib.util.find_spec("dbgpt_app") is None:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session", params=WAYS, ids=lambda way: way.name)
def deployment(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    """DB-GPT's web server on an example file, and this server behind it."""
    way: Way = request.param
    with deployed(way, tmp_path_factory.mktemp(way.name)) as running:
        yield running
        guanaco_log = running.guanaco.log
    assert "Traceback" not in guanaco_log
    assert "ERROR" not in guanaco_log


@pytest.fixture(scope="session")
def web(deployment: Deployment) -> Iterator[WebApi]:
    """A person at the chat page."""
    api = WebApi(deployment.web.address, MODEL)
    yield api
    api.close()


@pytest.fixture(scope="session")
def database(deployment: Deployment, web: WebApi, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A SQLite file that DB-GPT knows: its name there."""
    embedded = "db summary embedding success"  # what its tables are, in the background
    before = deployment.web.log.count(embedded)
    name = web.add_database(write_database(tmp_path_factory.mktemp("database")))
    deployment.web.wait_until(
        lambda: deployment.web.log.count(embedded) > before, "the tables are embedded", 30
    )
    return name


@pytest.fixture(scope="session")
def space(deployment: Deployment, web: WebApi) -> str:
    """A knowledge space with one document, embedded."""
    web.add_space(SPACE)
    document = web.upload(SPACE, "notes.txt", "\n\n".join(PASSAGES))
    web.embed(SPACE, document)
    deployment.web.wait_until(
        lambda: web.document(SPACE, document)["status"] in ("FINISHED", "FAILED"),
        "the document is embedded",
        60,
    )
    found = web.document(SPACE, document)
    assert found["status"] == "FINISHED", found
    assert found["chunk_size"] == len(PASSAGES)
    return SPACE
