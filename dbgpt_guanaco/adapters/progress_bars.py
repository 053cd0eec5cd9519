"""The progress bars of transformers and of the hub, read by whoever asks how far a start is."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub.utils.tqdm import tqdm

from dbgpt_guanaco.start import StartProgress, Tell, counted

LOADING = "loading weights"
FETCHING = "fetching the model"


@contextmanager
def counting_tensors(tell: Tell) -> Iterator[None]:
    """Tell of each tensor that transformers loads meanwhile."""
    # Only here: who looks for a folder needs no transformers.
    from transformers.utils import logging as transformers_logging

    def hook(bar: Callable[..., Any], items: tuple[Any, ...], options: dict[str, Any]) -> Any:  # noqa: ANN401
        if options.get("desc") != "Loading weights":
            return bar(*items, **options)
        total = {"total": len(items[0])}
        return bar(counted(items[0], LOADING, "tensors", tell), **options | total)

    previous = transformers_logging.set_tqdm_hook(hook)
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(previous)


def _counts_bytes(options: dict[str, Any]) -> bool:
    # A second bar counts what comes over the network, which may be fewer: the same bytes twice.
    return options.get("unit") == "B" and not str(options.get("name")).endswith(".transfer")


def bar_of_bytes(tell: Tell) -> type[Any]:
    """Return the hub's progress bar, which also tells how many bytes have come."""

    class BytesBar(tqdm):
        def __init__(self, *items: Any, **options: Any) -> None:  # noqa: ANN401
            self._counts_bytes, self._bytes = _counts_bytes(options), 0
            super().__init__(*items, **options)  # type: ignore[no-untyped-call]  # the hub's own

        def update(self, n: float | None = 1) -> bool | None:
            """Show and tell that so many more have come."""
            if self._counts_bytes:
                self._bytes += int(n or 0)
                tell(StartProgress(FETCHING, self._bytes, int(self.total or 0), "bytes"))
            shown: bool | None = super().update(n)
            return shown

    return BytesBar
