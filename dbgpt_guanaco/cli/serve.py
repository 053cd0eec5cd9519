"""``dbgpt-guanaco serve``."""

import sys


def serve() -> None:
    """Load the model that LLM_MODEL or .env names, and serve it.

    Example:  LLM_MODEL=guanaco-33b-merged dbgpt-guanaco serve
    """
    from dbgpt_guanaco.server.__main__ import main

    sys.exit(main())
