"""Every way in which a file can be bad ends in one line that names the file, the fault and what is allowed."""

from pathlib import Path

import numpy as np
import pytest

from mfubench.data import tables
from mfubench.data.tables import Column, digest, read_table
from mfubench.errors import BadInput

COLUMNS = (
    Column("user", "int64", least=0),
    Column("flag", "int8", least=0, most=1),
    Column("stars", "float64", least=0.5, most=5),
    Column("name", "str"),
    Column("extra", "int8", required=False),
)
GOOD = "unused,user,flag,stars,name\nx,3,1,4.5,A\ny,5,0,1,B\n"


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "table.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(path: Path) -> dict[str, list[object]]:
    chunks = list(read_table(path, COLUMNS))
    return {name: np.concatenate([chunk[name] for chunk in chunks]).tolist() for name in chunks[0]}


@pytest.mark.parametrize(
    "content",
    [
        GOOD,
        GOOD.rstrip("\n"),
        GOOD.replace(",", "\t"),
        GOOD.replace("\n", "\r\n"),
        "\ufeff" + GOOD,
        GOOD.replace("x", '"x, with a comma"'),
        GOOD + "\n\n",
    ],
    ids=["commas", "no last newline", "tabs", "Windows", "byte order mark", "quotes", "blank lines"],
)
def test_the_same_table_in_every_dialect(tmp_path: Path, content: str) -> None:
    assert read(write(tmp_path, content)) == {"user": [3, 5], "flag": [1, 0], "stars": [4.5, 1], "name": ["A", "B"]}


def test_an_optional_column_is_read_where_there_is_one(tmp_path: Path) -> None:
    assert read(write(tmp_path, "extra," + GOOD.replace("\nx", "\n7,x").replace("\ny", "\n8,y")))["extra"] == [7, 8]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "the file is empty; a header and rows are needed"),
        ("\n \n", "the file is empty"),
        ("unused,user,flag,stars,name\n", "has a header but no rows"),
        ("unused,user,flag,stars,name", "has a header but no rows"),
        ("user,flag\n1,1\n", r"missing column\(s\) stars, name; the header has user, flag"),
        (
            GOOD.replace("5,0,1,B", "five,0,1,B"),
            r"column user holds five in row 2 after the header; allowed: a whole num",
        ),
        (GOOD.replace("3,1,", "3.5,1,"), "column user holds 3.5 in row 1 "),
        (GOOD.replace("3,1,", ",1,"), "column user holds nothing in row 1 "),
        (GOOD.replace("3,1,", "-3,1,"), "column user holds -3 in row 1 .*allowed: a whole number of 0 or more"),
        (
            GOOD.replace("3,1,", "99999999999999999999,1,"),
            r"column user holds 99999999999999999999 in row 1 .*allowed: a whole number of 0 or more, below 2\*\*63",
        ),
        (GOOD.replace("3,1,", "3,2,"), "column flag holds 2 in row 1 .*allowed: a whole number from 0 to 1"),
        (GOOD.replace("3,1,", "3,1000,"), "column flag holds 1000 in row 1 "),
        (GOOD.replace("4.5", "nan"), "column stars holds nan in row 1 .*allowed: a number from 0.5 to 5"),
        (GOOD.replace("4.5", "inf"), "column stars holds inf in row 1 "),
        (GOOD.replace("x,3,1,4.5,A", "x,3"), "column flag holds nothing in row 1 "),
        (GOOD.removesuffix(",1,B\n"), "the last line has 3 of 5 fields; the file is cut short, get it again"),
        (GOOD.replace("x", '"x'), "not a table"),
        (b"\x1f\x8b\x08\x00" + bytes(range(256)), "not a text file; a plain, uncompressed csv file is needed"),
        (b"PAR1\x00\x00\n" + bytes(200), "not a text file"),
        ("user,flag,stars,name\n".encode("utf-16"), "not a text file"),
    ],
)
def test_bad_file(tmp_path: Path, content: str | bytes, said: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(BadInput, match=said) as caught:
        read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read: Is a directory"):
        read(tmp_path)


def test_the_row_of_a_fault_counts_earlier_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "CHUNK_ROWS", 3)
    rows = [f"x,{i},1,2,A" for i in range(8)]
    text = "unused,user,flag,stars,name\n" + "\n".join(rows) + "\n"
    assert read(write(tmp_path, text))["user"] == list(range(8))
    with pytest.raises(BadInput, match="column user holds seven in row 8 "):
        read(write(tmp_path, text.replace("x,7,", "x,seven,")))


def test_a_long_file_is_checked_at_both_ends(tmp_path: Path) -> None:
    text = GOOD + "z,1,1,1,C\n" * 20_000
    assert len(read(write(tmp_path, text))["user"]) == 20_002
    with pytest.raises(BadInput, match="the last line has 4 of 5 fields"):
        read(write(tmp_path, text[:-3]))


def test_digest_follows_the_content(tmp_path: Path) -> None:
    before = digest([write(tmp_path, GOOD)])
    assert before == digest([write(tmp_path, GOOD)]) != digest([write(tmp_path, GOOD + "z,1,1,1,C\n")])
