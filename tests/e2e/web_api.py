"""DB-GPT's HTTP API as its chat page uses it, see ``dbgpt_app/openapi`` and ``knowledge``."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

ANSWER_S = 120.0


class Answer:
    """A streamed answer: a chat page shows each text in place of the one before."""

    def __init__(self, response: httpx.Response) -> None:
        self._lines = response.iter_lines()

    def texts(self) -> Iterator[str]:
        """Yield the whole text so far, each time that more of it has come."""
        for line in self._lines:
            if line.startswith("data:"):
                yield _text(line.removeprefix("data:").strip())


def _text(data: str) -> str:
    with contextlib.suppress(json.JSONDecodeError):
        return str(json.loads(data)["choices"][0]["message"]["content"])
    return data  # an error is sent without JSON around it


class WebApi:
    """A person at DB-GPT's chat page. Each call fails unless DB-GPT says that it went well."""

    def __init__(self, address: str, model: str) -> None:
        self._model = model
        self._http = httpx.Client(base_url=address, timeout=ANSWER_S, trust_env=False)

    def close(self) -> None:
        self._http.close()

    def new_conversation(self, mode: str) -> str:
        created = self._post("/api/v1/chat/dialogue/new", params={"chat_mode": mode})
        return str(created["conv_uid"])

    @contextlib.contextmanager
    def asking(
        self, mode: str, text: str, *, conversation: str = "", about: str = "", max_tokens: int = 32
    ) -> Iterator[Answer]:
        """Ask, and yield the answer while it comes. Leaving early closes the connection.

        Args:
            mode: One of DB-GPT's chat scenes.
            text: What is asked.
            conversation: The conversation to go on with; a new one without it.
            about: The scene's database or knowledge space.
            max_tokens: Limit on new tokens.
        """
        body = {
            "conv_uid": conversation or self.new_conversation(mode),
            "chat_mode": mode,
            "app_code": mode,
            "model_name": self._model,
            "user_input": text,
            "select_param": about,
            "temperature": 0,
            "max_new_tokens": max_tokens,
            "ext_info": {},
        }
        # A client of its own: its connection closes with it, as a closed page's does.
        with (
            httpx.Client(base_url=self._http.base_url, timeout=ANSWER_S, trust_env=False) as page,
            page.stream("POST", "/api/v1/chat/completions", json=body) as response,
        ):
            response.raise_for_status()
            yield Answer(response)

    def ask(self, mode: str, text: str, **options: Any) -> list[str]:
        """Ask and return all texts that came, the complete answer last."""
        with self.asking(mode, text, **options) as answer:
            return list(answer.texts())

    def history(self, conversation: str) -> list[dict[str, Any]]:
        """Return a conversation's messages as DB-GPT has stored them."""
        params = {"con_uid": conversation}
        return list(self._get("/api/v1/chat/dialogue/messages/history", params=params))

    def add_database(self, file: Path) -> str:
        """Make a SQLite file known; return its name in DB-GPT."""
        body = {"type": "sqlite", "params": {"path": str(file)}}
        return str(self._post("/api/v2/serve/datasources", json=body)["db_name"])

    def add_space(self, name: str) -> None:
        body = {"name": name, "vector_type": "VectorStore", "desc": "for tests", "owner": "dbgpt"}
        self._post("/api/v1/knowledge/space/add", json=body)

    def upload(self, space: str, name: str, text: str) -> int:
        """Upload a document; return its id. It is not embedded yet."""
        form = {"doc_name": name, "doc_type": "DOCUMENT"}
        file = {"doc_file": (name, text.encode(), "text/plain")}
        return int(self._post(f"/api/v1/knowledge/{space}/document/upload", data=form, files=file))

    def embed(self, space: str, document: int) -> None:
        """Have a document cut into chunks and embedded, in the background."""
        parameters = {
            "chunk_strategy": "CHUNK_BY_SEPARATOR",
            "separator": "\n\n",
            "enable_merge": False,
        }
        body = [{"doc_id": document, "chunk_parameters": parameters}]
        self._post(f"/api/v1/knowledge/{space}/document/sync_batch", json=body)

    def document(self, space: str, document: int) -> dict[str, Any]:
        """Return what DB-GPT's knowledge page shows of a document."""
        listed = self._post(
            f"/api/v1/knowledge/{space}/document/list", json={"doc_ids": [document]}
        )
        (found,) = listed["data"]
        return dict(found)

    def recall(self, space: str, question: str, count: int) -> list[str]:
        """Return the chunks that DB-GPT finds for a question, best first."""
        body = {
            "question": question,
            "recall_top_k": count,
            "recall_retrievers": ["Semantic"],
            "recall_score_threshold": 0,
        }
        chunks = self._post(f"/api/v1/knowledge/{space}/recall_test", json=body)
        return [str(chunk["content"]) for chunk in chunks]

    def _get(self, path: str, **request: Any) -> Any:
        return _data(self._http.get(path, **request))

    def _post(self, path: str, **request: Any) -> Any:
        return _data(self._http.post(path, **request))


def _data(response: httpx.Response) -> Any:
    """Return what is inside DB-GPT's envelope, which tells failures with status 200."""
    envelope = response.raise_for_status().json()
    assert envelope["success"], f"{response.request.url}: {envelope}"
    return envelope["data"]
