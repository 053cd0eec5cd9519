import hashlib
import json
from pathlib import Path

import pytest

from dbgpt_guanaco.errors import DataError
from dbgpt_guanaco.training.conversations import read_data

GOOD = json.dumps({"instruction": "Hi", "output": "Hello."})
SHARED = json.dumps(
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "x"}]}
)
BAD = json.dumps({"instruction": "Hi"})


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "data.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_lines_of_several_formats_are_read_in_order(tmp_path: Path) -> None:
    path = write(tmp_path, f"{GOOD}\n\n{SHARED}\n")

    data = read_data(path)

    assert [c[-1].content for c in data.conversations] == ["Hello.", "x"]
    assert (data.name, data.bad_lines) == ("data.jsonl", 0)
    assert data.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "content",
    [
        f"\ufeff{GOOD}",
        f"{GOOD}\r\n",
        json.dumps({"instruction": "Hi", "output": "a\u2028b"}, ensure_ascii=False),
    ],
    ids=["byte order mark", "Windows", "a separator of lines inside a string"],
)
def test_a_line_is_a_line(tmp_path: Path, content: str) -> None:
    assert len(read_data(write(tmp_path, content)).conversations) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"{GOOD}\n\n{BAD}\n{GOOD}", "line 3 has an instruction and no output"),
        (f"{GOOD}\n{{\n", "line 2 is not JSON (Expecting property name"),
        ("[" * 100_000, "line 1 is not JSON (too deep or too long)"),
        (f"[{GOOD}]", "line 1 is a JSON array; write one object a line, as  jq -c '.[]'  does"),
        ("3", "line 1 is not a JSON object"),
        ("\n".join([BAD] * 7), "line 5 has an instruction and no output; and 2 more bad lines"),
        ("", "holds no conversation"),
        (GOOD.encode() + b"\n\xff\n", "line 2: is not UTF-8"),
    ],
)
def test_a_bad_line_is_named_by_its_number(
    tmp_path: Path, content: str | bytes, message: str
) -> None:
    with pytest.raises(DataError) as refused:
        read_data(write(tmp_path, content))

    assert message in str(refused.value)
    assert str(refused.value).startswith(str(tmp_path / "data.jsonl"))


def test_bad_lines_are_left_out_and_counted_where_that_is_wanted(tmp_path: Path) -> None:
    data = read_data(write(tmp_path, f"{BAD}\n{GOOD}\n{BAD}\n"), skips_bad=True)

    assert (len(data.conversations), data.bad_lines) == (1, 2)


def test_nothing_but_bad_lines_is_refused_even_then(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no conversation; .*line 1 has an instruction"):
        read_data(write(tmp_path, BAD), skips_bad=True)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.jsonl cannot be read: No such file"):
        read_data(tmp_path / "data.jsonl")
