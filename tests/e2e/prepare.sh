#!/usr/bin/env bash
# Make .venv-dbgpt: the real DB-GPT, this package's plugin, and what DB-GPT would download.
# Running it again does only what is missing.
set -euo pipefail
cd "$(dirname "$0")/../.."

venv=.venv-dbgpt
requirements=tests/e2e/requirements.txt
done_mark=$venv/.prepared
# tiktoken looks for the encoding of DB-GPT's token counts under the sha1 of its address.
encoding=9b5ad71b2ce5302211f9c61530b329a4922fc6a4

pip() { "$venv/bin/python" -m pip --quiet --disable-pip-version-check "$@"; }

if ! cmp --silent "$requirements" "$done_mark"; then
    [ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
    pip install -r "$requirements"
    # Without its dependencies: the plugin runs on what DB-GPT brings.
    pip install --no-deps -e .
fi

if [ ! -f "$venv/tiktoken/$encoding" ]; then
    wheel=$(mktemp -d)
    trap 'rm -rf "$wheel"' EXIT
    pip download --no-deps --dest "$wheel" litellm==1.75.8
    mkdir -p "$venv/tiktoken"
    "$venv/bin/python" - "$wheel" "$venv/tiktoken/$encoding" <<'PYTHON'
import sys, zipfile
from pathlib import Path

folder, target = map(Path, sys.argv[1:])
(wheel,) = folder.glob("litellm-*.whl")
part = target.with_suffix(".part")
part.write_bytes(zipfile.ZipFile(wheel).read(f"litellm/litellm_core_utils/tokenizers/{target.name}"))
part.replace(target)
PYTHON
fi

cp "$requirements" "$done_mark"
