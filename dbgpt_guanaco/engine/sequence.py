"""One answer on its way through the batching engine: its tokens, its blocks, its progress."""

from dbgpt_guanaco.engine.answer import Answer
from dbgpt_guanaco.engine.block_manager import Node
from dbgpt_guanaco.engine.generation import StreamingGeneration
from dbgpt_guanaco.engine.rows import Row


class Sequence:
    """The tokens of a prompt and its answer, and how much of them the cache holds.

    Attributes:
        generation: Who reads the answer.
        answer: The text of what was drawn.
        row: How its tokens are drawn.
        token_ids: Prompt and answer. The newest may be drawn but not known yet: ``num_tokens``
            counts it.
        num_tokens: Tokens, those that are still on the device included.
        num_computed: Leading tokens whose keys and values are in the cache, or are computed by
            a step that has been handed to the device.
        blocks: Where they are, from the first token on.
        is_decoding: All tokens but the newest are computed.
        is_seated: It has had blocks before, and may have lost them.
        is_over: It has had its last token.
    """

    def __init__(self, generation: StreamingGeneration, answer: Answer, row: Row) -> None:
        self.generation, self.answer, self.row = generation, answer, row
        self.token_ids: list[int] = list(generation.input_ids)
        self.num_tokens = len(self.token_ids)
        self.max_tokens = generation.kv_tokens
        self.num_computed = 0
        self.blocks: list[int] = []
        self.node: Node = generation.cache_salt
        self.num_remembered = 0  # leading blocks that can be found, by these or other numbers
        self.is_decoding = False
        self.is_seated = False
        self.is_over = False

    @property
    def request_id(self) -> str:
        """Names it in logs."""
        return self.generation.request.request_id

    @property
    def salt(self) -> str:
        """Only sequences of one salt share blocks."""
        return self.generation.cache_salt

    @property
    def is_cancelled(self) -> bool:
        """Nobody reads the answer any more."""
        return self.generation.is_cancelled

    @property
    def has_room(self) -> bool:
        """Another token may be drawn."""
        return self.num_tokens < self.max_tokens

    def expect_token(self) -> None:
        """Count a token that is being drawn."""
        self.num_tokens += 1

    def append(self, token_id: int) -> None:
        """Take the token that was expected."""
        self.token_ids.append(token_id)

    def start_again(self) -> None:
        """Forget what was computed; its blocks are gone."""
        self.blocks, self.num_computed, self.is_decoding = [], 0, False
        self.node, self.num_remembered = self.salt, 0
