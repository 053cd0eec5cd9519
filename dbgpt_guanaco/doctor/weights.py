"""The model's files: whole, of the size that they say, and nothing in them that is not weights."""

import re
from collections.abc import Iterator
from pathlib import Path

from dbgpt_guanaco.adapters.folder import INDEX, read_json, weight_files
from dbgpt_guanaco.adapters.foreign_code import check_code, find_code
from dbgpt_guanaco.adapters.headers import data_bytes, tensor_headers
from dbgpt_guanaco.adapters.loading import load_config
from dbgpt_guanaco.checkpoints.shards import file_hash
from dbgpt_guanaco.doctor.findings import Finding, failure, ok, warning
from dbgpt_guanaco.doctor.setup import Setup

PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt")
# Pickled by nature, and no weights.
HARMLESS = ("training_args.bin", "optimizer.pt", "scheduler.pt")
SHA256 = re.compile(r"[0-9a-f]{64}")


def files(setup: Setup) -> Finding:
    """Look at every file that the model is loaded from; read all of it if that was asked for."""
    folder = setup.source.model_path
    trusts_code = setup.settings.model.trust_remote_code
    load_config(folder, trusts_code=trusts_code)
    shards = weight_files(folder)
    tensors = tensor_headers(shards)
    if problem := _against_index(folder, shards):
        return failure(problem, "fetch the model again")
    if setup.is_deep and (problem := "; ".join(_wrong_checksums(folder, shards))):
        return failure(problem, "fetch these files again")
    where = "1 file" if len(shards) == 1 else f"{len(shards)} files"
    told = f"{len(tensors)} tensors in {where}, {_gib(shards):.2f} GiB"
    told += _what_was_compared(folder, shards) if setup.is_deep else ""
    if code := find_code(folder):
        check_code(folder, is_trusted=trusts_code)
        runs = "runs, because GUANACO_TRUST_REMOTE_CODE is on" if trusts_code else "is not run"
        return warning(f"{told}. Its own code {runs}: {'; '.join(map(str, code))}")
    if problem := _against_size(folder, shards):  # converted by a tool that counts otherwise
        return warning(f"{told}; {problem}", "compare with the model's page on the hub")
    if pickles := _pickles(folder):
        return warning(
            f"{told}. Pickles beside them are not loaded, and could run code in another program: "
            f"{', '.join(path.name for path in pickles)}",
            "rm " + " ".join(str(path) for path in pickles),
        )
    return ok(told)


def _against_index(folder: Path, shards: list[Path]) -> str:
    """Say what the index promises and the files do not hold."""
    held = {shard.name: {name for name, _, _ in tensor_headers([shard])} for shard in shards}
    if sum(map(len, held.values())) != len(set().union(*held.values())):
        return f"{folder}: a tensor is in two files, so one of them is of another model"
    if not (folder / INDEX).is_file():
        return ""
    index = read_json(folder / INDEX)
    for file, names in held.items():
        promised = {name for name, named in index["weight_map"].items() if named == file}
        if lost := sorted(promised - names):
            return f"{file} lacks {len(lost)} tensors that {INDEX} promises, such as {lost[0]}"
    return ""


def _against_size(folder: Path, shards: list[Path]) -> str:
    """Say by how much the files' size differs from what the index says."""
    metadata = read_json(folder / INDEX).get("metadata") if (folder / INDEX).is_file() else None
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    found = sum(map(data_bytes, shards))
    if isinstance(total, int) and total != found:
        return f"they hold {found} bytes of tensors, and {INDEX} says {total}"
    return ""


def _gib(paths: list[Path]) -> float:
    return sum(path.stat().st_size for path in paths) / 2**30


def _pickles(folder: Path) -> list[Path]:
    found = {path for pattern in PICKLES for path in folder.glob(pattern)}
    return sorted(path for path in found if path.name not in HARMLESS)


def _known_checksum(folder: Path, path: Path) -> str:
    """Return the SHA-256 that the hub gave for a file when it was fetched; empty if unknown."""
    noted = folder / ".cache" / "huggingface" / "download" / f"{path.name}.metadata"
    if noted.is_file():
        lines = noted.read_text(errors="replace").splitlines()
        return next((line for line in lines if SHA256.fullmatch(line)), "")
    # In the hub's cache a file is a link to one that is named by its checksum.
    name = path.resolve().name
    return name if SHA256.fullmatch(name) else ""


def _wrong_checksums(folder: Path, shards: list[Path]) -> Iterator[str]:
    for path in shards:
        known = _known_checksum(folder, path)
        if known and file_hash(path) != known:
            yield f"{path} is not what was fetched: its SHA-256 is not {known}"


def _what_was_compared(folder: Path, shards: list[Path]) -> str:
    unknown = [path for path in shards if not _known_checksum(folder, path)]
    if not unknown:
        return ", each with the hub's checksum"
    told = ", ".join(f"{path.name} {file_hash(path)}" for path in unknown)
    return f". There is no checksum to compare with; SHA-256: {told}"
