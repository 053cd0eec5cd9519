"""How it is trained: the recipe of the QLoRA paper, unless somebody says otherwise."""

from dataclasses import dataclass
from typing import Any

from dbgpt_guanaco.adapters.training_memory import Optimizer
from dbgpt_guanaco.errors import ConfigurationError

# The paper has one learning rate and dropout for 7B and 13B, another for 33B and 65B.
LARGE_PARAMETERS = 20_000_000_000


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """All that decides what a base learns from its data.

    Source: QLoRA, arXiv 2305.14314, appendix B.2, and the scripts of its repository.

    Attributes:
        rank: Of A and B, on every linear layer but the head.
        alpha: What A and B add is scaled by alpha / rank.
        batch: Sequences of one optimizer step.
        micro_batch: Of them, so many are computed at a time; the rest is accumulated.
        max_tokens: Of a sequence.
        epochs: Rounds through the data; ignored where ``max_steps`` is given.
        max_steps: Optimizer steps; None is as many as the epochs have.
        clip: Largest norm of a gradient.
        recomputes: Activations are computed again for the gradient instead of kept.
        groups_by_length: Sequences of a like length come together, so that less is padding.

    Raises:
        ConfigurationError: A value is out of range.
    """

    rank: int = 64
    alpha: int = 16
    dropout: float = 0.1
    learning_rate: float = 2e-4
    batch: int = 16
    micro_batch: int = 1
    max_tokens: int = 512
    epochs: float = 3
    max_steps: int | None = None
    beta2: float = 0.999
    clip: float = 0.3
    optimizer: Optimizer = "paged_adamw_32bit"
    recomputes: bool = True
    groups_by_length: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        # Each test asks for what is right: NaN fails every comparison.
        self._check("rank", 1 <= self.rank <= 1024, "from 1 to 1024")
        self._check("alpha", 1 <= self.alpha <= 10_000, "from 1 to 10,000")
        self._check("dropout", 0 <= self.dropout < 1, "from 0, below 1")
        self._check("learning_rate", 0 < self.learning_rate <= 1, "above 0, at most 1")
        self._check("batch", 1 <= self.batch <= 65_536, "from 1 to 65,536")
        self._check("micro_batch", 1 <= self.micro_batch <= self.batch, "from 1 to --batch")
        self._check(
            "micro_batch",
            self.batch % self.micro_batch == 0,
            f"a divisor of --batch, which is {self.batch}",
        )
        self._check("max_tokens", 16 <= self.max_tokens <= 2**20, "from 16 to 1,048,576")
        self._check("epochs", 0 < self.epochs <= 10_000, "above 0, at most 10,000")
        self._check("max_steps", self.max_steps is None or self.max_steps >= 1, "1 or more")
        self._check("beta2", 0 < self.beta2 < 1, "between 0 and 1")
        self._check("clip", 0 < self.clip <= 1_000, "above 0, at most 1,000")
        self._check("seed", 0 <= self.seed < 2**32, "from 0 to 4,294,967,295")

    def _check(self, name: str, is_right: bool, rule: str) -> None:
        if not is_right:
            option = "--" + name.replace("_", "-")
            raise ConfigurationError(f"{option} is {getattr(self, name)}; it must be {rule}")

    @property
    def rounds(self) -> float | None:
        """Rounds through the data, where they and not ``max_steps`` decide."""
        return None if self.max_steps else self.epochs

    @property
    def accumulation(self) -> int:
        """Passes of one optimizer step."""
        return self.batch // self.micro_batch


def defaults(parameters: int, *, on_cuda: bool) -> dict[str, Any]:
    """Return what the paper takes for a base of so many parameters; paged memory is CUDA's."""
    optimizer: Optimizer = "paged_adamw_32bit" if on_cuda else "adamw_torch"
    if parameters > LARGE_PARAMETERS:
        return {"dropout": 0.05, "learning_rate": 1e-4, "optimizer": optimizer}
    return {"dropout": 0.1, "learning_rate": 2e-4, "optimizer": optimizer}
