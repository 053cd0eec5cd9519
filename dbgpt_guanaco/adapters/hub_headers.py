"""What the hub tells of a model without its weights: small JSON files and safetensors headers."""

import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (  # type: ignore[attr-defined] # the HTTP client's error
    HTTPError,
    NotASafetensorsRepoError,
    SafetensorsParsingError,
)
from huggingface_hub.utils._paths import filter_repo_objects

from dbgpt_guanaco.adapters.resolve import HUB_TIMEOUT_S, OTHER_FORMATS
from dbgpt_guanaco.errors import ModelLoadError, ModelNotFoundError

# Headers are asked for side by side: 65B has 14 and more files.
CONNECTIONS = 8


@dataclass(frozen=True, slots=True)
class HubModel:
    """What the hub has under a name.

    Attributes:
        folder: Its configuration, fetched; of weights there is nothing in it.
        parameters: Numbers in its safetensors files; None where there are none.
        weight_bytes: Of the files that hold weights.
    """

    hub: str
    folder: Path
    parameters: int | None
    weight_bytes: int


@contextmanager
def asked_hub(hub: str) -> Iterator[HubModel]:
    """Yield what the hub says of a model. Nothing of it is kept.

    Raises:
        ModelNotFoundError: The hub has it not, or cannot be reached.
        ModelLoadError: What it has cannot be understood.
    """
    with tempfile.TemporaryDirectory() as scratch, hub_errors_told(hub):
        if constants.HF_HUB_OFFLINE:
            raise OSError("it was not asked, because HF_HUB_OFFLINE is set")
        api = HfApi()
        listed = api.model_info(hub, files_metadata=True, timeout=HUB_TIMEOUT_S).siblings or []
        sizes = {file.rfilename: int(file.size or 0) for file in listed}
        for name in {"config.json", "adapter_config.json"} & sizes.keys():
            api.hf_hub_download(hub, name, local_dir=scratch)
        weights = sorted(filter_repo_objects(
            sizes, allow_patterns=["*.safetensors", "*.bin"], ignore_patterns=OTHER_FORMATS
        ))  # fmt: skip
        safe = [name for name in weights if name.endswith(".safetensors")]
        model = HubModel(
            hub,
            Path(scratch),
            _count_parameters(api, hub, safe) if safe else None,
            sum(sizes[name] for name in safe or weights),
        )
        yield model


@contextmanager
def hub_errors_told(hub: str) -> Iterator[None]:
    """Turn what goes wrong between here and the hub into one clear error."""
    try:
        yield
    except (NotASafetensorsRepoError, SafetensorsParsingError) as error:
        raise ModelLoadError(f"{hub}: {error}") from None
    except (HTTPError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise ModelNotFoundError(
            hub,
            [f"hub {constants.ENDPOINT}: {type(error).__name__}: {reason}"],
            "Check the name and the network. Where the hub is out of reach, "
            "HF_ENDPOINT=https://… names a mirror.",
        ) from None


def _count_parameters(api: HfApi, hub: str, files: Sequence[str]) -> int:
    read = partial(api.parse_safetensors_file_metadata, hub)
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        headers = list(pool.map(read, files))
    return sum(count for header in headers for count in header.parameter_count.values())
