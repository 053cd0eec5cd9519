"""``dbgpt-guanaco``: the commands around the server."""

import sys

try:
    from dbgpt_guanaco.cli.app import app
except ModuleNotFoundError as error:  # only the plugin for DB-GPT is installed
    if error.name not in ("typer", "rich"):
        raise
    sys.exit("the server is not installed: pip install 'dbgpt-guanaco[server]'")

__all__ = ["app"]
