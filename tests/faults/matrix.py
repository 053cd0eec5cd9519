"""The fault matrix: what was injected, what clients saw, when the next request worked."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).parent.parent.parent / "docs" / "faults.md"
MARK = "<!-- rows: written by pytest tests/faults --write-matrix -->\n"
ENGINES, BOTH = ("batching engine", "streaming engine"), "both engines"
HEADER = (
    "| fault | where | what clients saw | next request worked after | lost |\n"
    "|---|---|---|---|---|\n"
)


@dataclass(frozen=True, slots=True)
class Row:
    """One fault.

    Attributes:
        fault: What was injected.
        where: Into which engine, or beside it.
        seen: What the clients saw, each dialect's where they differ.
        next: When the next request worked: seconds from the last client's end, or words.
        lost: What did not come back.
    """

    fault: str
    where: str
    seen: str
    next: float | str = "no gap"
    lost: str = "nothing"

    @property
    def claim(self) -> "Claim":
        """All but the time, which differs from run to run."""
        return self.fault, self.where, self.seen, self.lost

    @property
    def time(self) -> str:
        """When the next request worked, in words."""
        if isinstance(self.next, str):
            return self.next
        return f"{self.next * 1000:.0f} ms" if self.next < 1 else f"{self.next:.1f} s"


Claim = tuple[str, str, str, str]


def write(rows: Iterable[Row]) -> None:
    """Put the rows of a run into the document; what both engines do alike is one row."""
    alike: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        alike.setdefault((row.fault, row.seen, row.lost), []).append(row)
    before, _, _ = FILE.read_text(encoding="utf-8").partition(MARK)
    lines = "".join(_line(same) for same in alike.values())
    FILE.write_text(f"{before}{MARK}\n{HEADER}{lines}", encoding="utf-8")


def _line(same: Sequence[Row]) -> str:
    where = BOTH if len(same) == len(ENGINES) else same[0].where
    times = " / ".join(dict.fromkeys(row.time for row in same))
    return f"| {same[0].fault} | {where} | {same[0].seen} | {times} | {same[0].lost} |\n"


def written_claims() -> set[Claim]:
    """Return what the document claims, without the times."""
    _, _, table = FILE.read_text(encoding="utf-8").partition(MARK)
    cells = [line.strip("| \n").split(" | ") for line in table.splitlines()[3:]]
    return {
        (fault, engine, seen, lost)
        for fault, where, seen, _, lost in cells
        for engine in (ENGINES if where == BOTH else (where,))
    }
