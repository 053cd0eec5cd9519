"""A light DB-GPT whose controller is our server: its own manager, registry and client."""

import asyncio
import time
from typing import Any

import pytest
from dbgpt.core import ModelMessage, ModelRequest
from dbgpt.model.base import ModelInstance
from dbgpt.model.cluster.base import WorkerStartupRequest
from dbgpt.model.cluster.client import RemoteLLMClient
from dbgpt.model.cluster.controller.controller import ModelRegistryClient
from dbgpt.model.cluster.embedding.remote_embedding import RemoteEmbeddings
from dbgpt.model.cluster.worker.remote_manager import RemoteWorkerManager

OTHER = {"model_name": "other@llm", "host": "127.0.0.1", "port": 9}


@pytest.fixture
def registry(server: Any) -> ModelRegistryClient:
    return ModelRegistryClient(server.address)


@pytest.fixture
def manager(registry: ModelRegistryClient) -> RemoteWorkerManager:
    return RemoteWorkerManager(registry)


async def test_the_server_lists_itself(server: Any, registry: ModelRegistryClient) -> None:
    instances = await registry.get_all_model_instances(healthy_only=True)

    found = {(i.model_name, i.host, i.port) for i in instances if i.healthy}
    assert {
        (f"{server.model}@llm", server.host, server.port),
        (f"{server.embedding_model}@text2vec", server.host, server.port),
        ("WorkerManager@service", server.host, server.port),
    } <= found


async def test_a_model_is_found_by_its_name(server: Any, registry: ModelRegistryClient) -> None:
    (instance,) = await registry.get_all_instances(f"{server.model}@llm", True)

    assert (instance.host, instance.port) == (server.host, server.port)
    assert await registry.get_all_instances("no-such@llm", True) == []
    by_thread = await asyncio.to_thread(
        registry.sync_get_all_instances, f"{server.model}@llm", True
    )
    assert [i.port for i in by_thread] == [server.port]


async def test_a_worker_comes_stays_and_goes(registry: ModelRegistryClient) -> None:
    instance = ModelInstance(**OTHER)

    assert await registry.register_instance(instance)
    assert await registry.send_heartbeat(instance)
    (found,) = await registry.get_all_instances(OTHER["model_name"], True)
    assert (found.host, found.port, found.healthy) == (OTHER["host"], OTHER["port"], True)

    instance.remove_from_registry = True
    assert await registry.deregister_instance(instance)
    assert await registry.get_all_instances(OTHER["model_name"], True) == []


async def test_a_heartbeat_alone_registers_a_worker(registry: ModelRegistryClient) -> None:
    instance = ModelInstance(**OTHER, remove_from_registry=True)

    assert await registry.send_heartbeat(instance)
    assert len(await registry.get_all_instances(OTHER["model_name"], True)) == 1
    await registry.deregister_instance(instance)


async def test_a_chat_through_the_cluster(server: Any) -> None:
    client = RemoteLLMClient(server.address)
    messages = [ModelMessage(role="human", content="hi")]
    request = ModelRequest.build_request(server.model, messages, stream=True)

    began = time.monotonic()
    outputs = [output async for output in client.generate_stream(request)]

    # Without /api/health each call to the controller would cost two seconds.
    assert time.monotonic() - began < 1.5
    assert (outputs[-1].text, outputs[-1].finish_reason) == (server.text, "stop")
    assert (await client.generate(request)).text == server.text


async def test_the_client_of_the_cluster_lists_and_counts(server: Any) -> None:
    client = RemoteLLMClient(server.address)

    assert [m.model for m in await client.models()] == [server.model]
    assert await client.count_token(server.model, "three short words") == 4


async def test_an_unknown_model_is_an_output_with_a_text(server: Any) -> None:
    messages = [ModelMessage(role="human", content="hi")]
    request = ModelRequest.build_request("no-such", messages, stream=True)
    client = RemoteLLMClient(server.address, auto_convert_message=False)

    outputs = [o async for o in client.worker_manager.generate_stream(request.to_dict())]

    assert outputs[-1].error_code != 0
    assert "no-such" in outputs[-1].text


async def test_a_knowledge_base_embeds_through_the_cluster(
    server: Any, manager: RemoteWorkerManager
) -> None:
    client = RemoteEmbeddings(server.embedding_model, manager)

    assert await client.aembed_documents(["one", "three"]) == [[3.0, 0.0, 0.5], [5.0, 1.0, 0.5]]
    assert await asyncio.to_thread(client.embed_query, "one") == [3.0, 0.0, 0.5]


async def test_the_model_page_lists_what_is_served(
    server: Any, manager: RemoteWorkerManager
) -> None:
    (entry,) = await manager.supported_models()

    assert (entry.host, entry.port) == (server.host, server.port)
    assert {m.model for m in entry.models} == {server.model, server.embedding_model}


def startup(server: Any, model: str) -> WorkerStartupRequest:
    return WorkerStartupRequest(
        host=server.host, port=server.port, model=model, worker_type="llm", params={}
    )


async def test_starting_what_runs_already_is_no_error(
    server: Any, manager: RemoteWorkerManager
) -> None:
    await manager.model_startup(startup(server, server.model))


async def test_starting_another_model_is_told(server: Any, manager: RemoteWorkerManager) -> None:
    with pytest.raises(Exception, match="no-such"):
        await manager.model_startup(startup(server, "no-such"))


async def test_stopping_is_told_and_the_model_stays(
    server: Any, manager: RemoteWorkerManager
) -> None:
    with pytest.raises(Exception, match=r"failed, error: .+"):
        await manager.model_shutdown(startup(server, server.model))

    assert await manager.get_model_instances("llm", server.model)
