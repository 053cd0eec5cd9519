"""Nothing measures a time by the wall clock, which jumps; it is only told, or examined itself."""

import re
from pathlib import Path

PACKAGE = Path(__file__).parent.parent.parent / "dbgpt_guanaco"
WALL_CLOCK = re.compile(r"\btime\.time(?:_ns)?\b|\bdatetime\.(?:now|utcnow|today)\(")
# What others are told: when a model or an answer was made, when a worker was last heard of, when a
# request came (to a collector of traces).
TOLD = {
    "types.py": 2,
    "engine/loras.py": 1,
    "server/openai_answers.py": 1,
    "server/instances.py": 1,
    "server/exchange.py": 1,
}
# The doctor asks whether it is right.
EXAMINED = {"doctor/controllers.py": 1, "doctor/surroundings.py": 1}


def test_the_wall_clock_is_read_only_to_be_told() -> None:
    found = {
        path.relative_to(PACKAGE).as_posix(): len(WALL_CLOCK.findall(path.read_text()))
        for path in PACKAGE.rglob("*.py")
    }

    assert {path: count for path, count in found.items() if count} == TOLD | EXAMINED
