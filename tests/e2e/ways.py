"""The ways from DB-GPT to this server: which example file, and which programs beside it."""

from dataclasses import dataclass
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent.parent / "examples" / "dbgpt"


@dataclass(frozen=True)
class Way:
    """One file of ``examples/dbgpt``."""

    name: str
    has_dbgpt_controller: bool = False

    @property
    def config(self) -> Path:
        return EXAMPLES / f"{self.name}.toml"


WAYS = (
    Way("openai"),
    Way("plugin"),
    Way("cluster-our-controller"),
    Way("cluster-dbgpt-controller", has_dbgpt_controller=True),
)
