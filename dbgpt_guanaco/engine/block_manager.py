"""Which blocks of the cache hold which tokens. Bookkeeping only: there is no tensor here.

A block holds the keys and values of ``block_size`` consecutive tokens, over all layers. A full
block is found again by its tokens and everything before them, so that requests with equal
beginnings share it. Blocks that nobody holds keep their content until they are needed, the
least recently used first.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import count

# Where a text goes on: behind a full block, or at the start, where its salt stands.
Node = int | str
_Key = tuple[Node, tuple[int, ...]]


class BlockManager:
    """Hands out blocks, shares those of equal prefixes, and counts who holds them.

    Args:
        num_blocks: Blocks of the cache.
        block_size: Tokens of a block.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks, self.block_size = num_blocks, block_size
        self._holders = [0] * num_blocks
        # Blocks that nobody holds, the first to be taken first.
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._by_key: dict[_Key, int] = {}
        self._key_of: dict[int, _Key] = {}
        # A node names what a block holds; it is never used again, as block numbers are.
        self._node_of: dict[int, int] = {}
        self._nodes = count()

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds, with or without content worth keeping."""
        return len(self._free)

    def blocks_for(self, tokens: int) -> int:
        """Return how many blocks so many tokens need."""
        return -(-tokens // self.block_size)

    def find(self, token_ids: Sequence[int], salt: str) -> list[int]:
        """Return the blocks that hold the longest known beginning, without taking them.

        The last token is never among them: a model has to compute at least one.
        """
        found: list[int] = []
        node: Node = salt
        for tokens in self._split(token_ids[:-1]):
            block = self._by_key.get((node, tokens))
            if block is None:
                break
            found.append(block)
            node = self._node_of[block]
        return found

    def can_hold(self, shared: Sequence[int], new: int, reserve: int = 0) -> bool:
        """Say whether so many new blocks are left beside shared ones and a reserve."""
        taken = sum(1 for block in shared if block in self._free)
        return self.num_free - taken >= new + reserve

    def share(self, blocks: Sequence[int]) -> None:
        """Hold blocks that have been found."""
        for block in blocks:
            self._holders[block] += 1
            self._free.pop(block, None)

    def take(self, number: int) -> list[int]:
        """Hold blocks whose old content is forgotten.

        Raises:
            LookupError: There are not so many.
        """
        if number > self.num_free:
            raise LookupError(f"{number} blocks are wanted, {self.num_free} are free")
        taken = [self._free.popitem(last=False)[0] for _ in range(number)]
        for block in taken:
            self._holders[block] = 1
        self.forget(taken)
        return taken

    def release(self, blocks: Sequence[int]) -> None:
        """Give blocks back; what they hold may be found again until they are taken.

        The end of a text is given up before its beginning, which more texts share.
        """
        for block in reversed(blocks):
            if not self._holders[block]:
                raise ValueError(f"block {block} is held by nobody")
            self._holders[block] -= 1
            if not self._holders[block]:
                self._free[block] = None
                # What cannot be found again is taken first.
                self._free.move_to_end(block, last=block in self._key_of)

    def node(self, blocks: Sequence[int], salt: str) -> Node:
        """Return where a text goes on that begins with found blocks."""
        return self._node_of[blocks[-1]] if blocks else salt

    def remember(self, node: Node, blocks: Sequence[int], token_ids: Sequence[int]) -> Node:
        """Let full blocks be found by what they hold, unless others hold the same.

        Args:
            node: Where the text before them ends.
            blocks: Full blocks, one after the other.
            token_ids: What they hold, ``block_size`` tokens each.

        Returns:
            Where the text goes on.
        """
        for block, tokens in zip(blocks, self._split(token_ids), strict=True):
            key = (node, tokens)
            first = self._by_key.setdefault(key, block)
            if first == block:
                self._key_of[block], self._node_of[block] = key, next(self._nodes)
            node = self._node_of[first]
        return node

    def forget(self, blocks: Sequence[int]) -> None:
        """Let blocks no longer be found: their content is wrong, or will be."""
        for block in blocks:
            key = self._key_of.pop(block, None)
            if key is not None:
                del self._by_key[key]
                del self._node_of[block]

    def forget_all(self) -> None:
        """Let nothing be found any more."""
        self.forget(list(self._key_of))

    def check(self, held: Sequence[Sequence[int]]) -> None:
        """Compare the books with the blocks that sequences say they hold.

        Raises:
            AssertionError: They differ, or contradict themselves.
        """
        holders = [0] * self.num_blocks
        for block in (block for blocks in held for block in blocks):
            holders[block] += 1
        assert holders == self._holders, "blocks are held by others than who says so"
        free = {block for block, number in enumerate(holders) if not number}
        assert free == set(self._free), "free blocks are not those that nobody holds"
        assert len(self._by_key) == len(self._key_of) == len(self._node_of)
        assert all(self._key_of[block] == key for key, block in self._by_key.items())

    def _split(self, token_ids: Sequence[int]) -> Iterator[tuple[int, ...]]:
        for start in range(0, len(token_ids) - self.block_size + 1, self.block_size):
            yield tuple(token_ids[start : start + self.block_size])
