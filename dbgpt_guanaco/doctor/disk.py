"""Is there room for the model, where it is or where it would be fetched to?"""

import os
import re
import shutil
from pathlib import Path

from huggingface_hub import constants

from dbgpt_guanaco.doctor.findings import Finding, NotCheckedError, failure, ok, warning
from dbgpt_guanaco.doctor.setup import Setup

GIB = 2**30
FEW_BYTES = GIB
# A model is fetched in 16 bits.
BYTES_PER_PARAMETER = 2


def disk(setup: Setup) -> Finding:
    """Hold free space against what is still to be fetched, or kept."""
    places = {nearest(setup.settings.model.models_dir), nearest(Path(constants.HF_HUB_CACHE))}
    free = {place: shutil.disk_usage(place).free for place in sorted(places)}
    told = "; ".join(f"{space / GIB:,.1f} GiB free at {place}" for place, space in free.items())
    try:
        _ = setup.source
        wanted = 0
    except NotCheckedError:
        wanted = size_in(setup.settings.model.name)
    if wanted > max(free.values()):
        return failure(
            f"{told}; {setup.settings.model.name} takes about {wanted / GIB:,.0f} GiB",
            "export HF_HOME=/a/larger/disk",
        )
    if min(free.values()) < FEW_BYTES:
        return warning(f"{told}: logs, caches and downloads will fail soon")
    if locked := [str(place) for place in free if not os.access(place, os.W_OK)]:
        return warning(f"{told}; nothing can be written to {', '.join(locked)}")
    return ok(told)


def nearest(folder: Path) -> Path:
    """Return a folder, or the nearest one above it that is there."""
    folder = folder.expanduser().absolute()
    return next(place for place in (folder, *folder.parents) if place.is_dir())


def size_in(name: str) -> int:
    """Return about how many bytes a model takes in 16 bits, by the size that its name tells."""
    found = re.search(r"(?<![\d.])(\d+(?:\.\d+)?)\s*b(?![a-z])", name.lower())
    return int(float(found[1]) * 1e9 * BYTES_PER_PARAMETER) if found else 0
