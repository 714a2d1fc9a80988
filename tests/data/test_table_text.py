"""Text files as the world writes them: decimal commas, other encodings, odd line ends, a line that names the mark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tables import Y, csv, dataset, lines, load

from mtlcli.data.tables import source
from mtlcli.errors import MtlError

ALL = ("train", "val", "test")


def details(data: Any) -> dict[str, str]:
    return {use.column: use.detail for use in data.columns}


def european(rows: int = 90, mark: str = ";") -> str:
    """`x;c;y` with a decimal comma in x; lines() with another mark."""
    return lines(rows).replace(",", mark).replace(".5", ",5")


# -- decimal commas ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True], ids=["resident", "stream"])
@pytest.mark.parametrize("mark", [";", "\t"])
def test_a_decimal_comma_is_read_like_a_point(tmp_path: Path, mark: str, stream: bool) -> None:
    plain = load(csv(tmp_path, lines(90)), tasks=Y, stream=stream)
    suffix = "csv" if mark == ";" else "tsv"
    found = load(csv(tmp_path, european(90, mark), f"e.{suffix}"), tasks=Y, stream=stream)
    assert found.features == plain.features
    assert found.fitted["columns"] == plain.fitted["columns"]
    for split in ALL:
        one, two = (torch.cat([b.inputs["numeric"] for b in data.splits[split].batches(16)]) for data in (plain, found))
        assert torch.equal(one, two)
    assert details(found)["x"].endswith("; decimal commas")
    assert "comma" not in details(plain)["x"]


def test_every_block_is_read_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "BYTES", 512)
    text = "x;z;y\n" + "".join(f"{i if i % 9 else f'{i},25'};{i % 7};{i % 2}\n" for i in range(400))
    data = load(csv(tmp_path, text), tasks=Y, stream=True)
    column = data.fitted["columns"][0]
    values = torch.cat([b.inputs["numeric"][:, 0] for s in ALL for b in data.splits[s].batches(50)]).double()
    expected = torch.tensor([i if i % 9 else i + 0.25 for i in range(400)], dtype=torch.float64)
    assert torch.allclose((values * column["scale"] + column["mean"]).sort().values, expected, atol=1e-3)


def test_points_group_thousands_beside_a_decimal_comma(tmp_path: Path) -> None:
    written = ["1.234,5", "2.000", "-3.456.789,25", "7,5", "12"]
    text = "x;z;y\n" + "".join(f"{written[i % 5]};{i};{i % 2}\n" for i in range(100))
    told = dataset(csv(tmp_path, text), tasks=Y)
    data = told.load()
    rows = told.read(csv(tmp_path, text, "n.csv"), data.fitted)
    column = data.fitted["columns"][0]
    found = rows.split.inputs["numeric"][:5, 0].double() * column["scale"] + column["mean"]
    assert found.tolist() == pytest.approx([1234.5, 2000, -3456789.25, 7.5, 12], abs=1.0)


def test_labels_have_decimal_commas_too(tmp_path: Path) -> None:
    text = "x;y\n" + "".join(f"{i % 13};{i / 4:.2f}\n".replace(".", ",") for i in range(120))
    data = load(csv(tmp_path, text), tasks={"y": {"kind": "regression"}})
    labels = torch.cat([data.splits[split].targets["y"] for split in ALL])
    assert sorted(data.tasks[0].in_unit(labels).tolist()) == pytest.approx([i / 4 for i in range(120)], abs=1e-3)


@pytest.mark.parametrize(
    ("values", "used", "said"),
    [
        (["1,234", "5,678", "9,012"], "numeric", "decimal commas: 1,234 is read as 1.234"),
        (["0,234", "0,678", "9,012"], "numeric", "decimal commas"),
        (["1,234", "5,67", "900"], "numeric", "decimal commas"),
        (["1,234", "567", "89"], "numeric", ""),  # a comma where thousands begin: 1,234 is a mistake
        (["1,234.5", "2,345.5", "3,456.5"], "categorical", ""),
        (["1,5", "2.5", "3.5"], "numeric", ""),  # most have a point: 1,5 is a mistake
        (["a,b", "c,d", "e"], "categorical", ""),
    ],
    ids=str,
)
def test_what_a_comma_means(tmp_path: Path, values: list[str], used: str, said: str) -> None:
    text = "x;z;y\n" + "".join(f"{values[i % 3]};{i};{i * 7 % 10 // 5}\n" for i in range(90))
    data = load(csv(tmp_path, text), tasks=Y, on_error="skip")
    use = next(use for use in data.columns if use.column == "x")
    assert use.used_as == used
    assert use.detail.endswith(said)
    assert ("comma" in use.detail) == bool(said)


def test_new_files_may_be_written_otherwise(tmp_path: Path) -> None:
    told = dataset(csv(tmp_path, european(90)), tasks=Y)
    data = told.load()
    rows = [
        told.read(csv(tmp_path, text, name), data.fitted).split.inputs["numeric"]
        for name, text in (("same.csv", european(20)), ("other.csv", lines(20)), ("tabs.tsv", european(20, "\t")))
    ]
    assert torch.equal(rows[0], rows[1])
    assert torch.equal(rows[0], rows[2])
    column = data.fitted["columns"][0]
    few = told.read(csv(tmp_path, "x;c;y\n1,234;a;0\n2;b;1\n", "few.csv"), data.fitted).split.inputs["numeric"][:, 0]
    assert (few.double() * column["scale"] + column["mean"]).tolist() == pytest.approx([1.234, 2.0], abs=1e-4)


# -- encodings and line ends -------------------------------------------------------------------------------------------


def latin(folder: Path, text: str, name: str = "l.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode("latin1"))
    return path


@pytest.mark.parametrize("stream", [False, True], ids=["resident", "stream"])
def test_a_row_in_another_encoding_is_a_bad_row(tmp_path: Path, stream: bool) -> None:
    path = latin(tmp_path, lines(80, r7="3,\xe4pfel,1", r50="4,\xfc,0"))
    with pytest.raises(MtlError, match=r"l\.csv, row 7 \(line 8\): should be text in UTF-8.*save the file as UTF-8"):
        load(path, tasks=Y, stream=stream)
    data = load(path, tasks=Y, stream=stream, on_error="skip")
    assert sum(map(len, data.splits.values())) == 78
    assert any(note.startswith("2 bad rows were left out") for note in data.notes)
    alone = load(latin(tmp_path, lines(80, r7="3,\xe4pfel,1")), tasks=Y, stream=stream, on_error="skip")
    assert any(note.startswith("1 bad row was left out (data.on_error: skip)") for note in alone.notes)


def test_text_beyond_ascii_is_no_fault(tmp_path: Path) -> None:
    text = lines(80, r9="1,2").replace(",c,", ",äpfel,")  # the short row has the block read field by field
    data = load(csv(tmp_path, text), tasks=Y, on_error="skip")
    assert sum(map(len, data.splits.values())) == 79
    assert data.fitted["columns"][1]["categories"] == ["a", "b", "äpfel"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_is_recognised(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "t.csv").write_bytes(lines().encode(encoding))
    with pytest.raises(MtlError, match=r"t\.csv: .*looks like UTF-16, .*; save it as UTF-8"):
        load(tmp_path / "t.csv", tasks=Y)


def test_a_first_line_in_another_encoding(tmp_path: Path) -> None:
    with pytest.raises(MtlError, match=r"l\.csv: should be a text file in UTF-8; byte 0 of its first line.*save it as"):
        load(latin(tmp_path, "\xfc" + lines()), tasks=Y)


def test_carriage_returns_alone_have_one_clear_message(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(lines().replace("\n", "\r").encode())
    with pytest.raises(
        MtlError, match=r"t\.csv: its lines should end in a line feed; .* carriage return alone"
    ) as caught:
        load(tmp_path / "t.csv", tasks=Y)
    assert "newline=" not in str(caught.value)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [";", ",", "|"])
def test_a_first_line_may_name_what_separates(tmp_path: Path, mark: str, end: str) -> None:
    text = f"sep={mark}\n" + lines().replace(",", mark)
    (tmp_path / "s.csv").write_bytes(text.replace("\n", end).encode())
    assert load(tmp_path / "s.csv", tasks=Y).fingerprint == load(csv(tmp_path, lines()), tasks=Y).fingerprint
    wrong = f"sep={mark}\n" + lines(r5="oops,a,0").replace(",", mark)
    with pytest.raises(MtlError, match=r"s\.csv, row 5 \(line 7\): column 'x'"):
        load(csv(tmp_path, wrong, "s.csv"), tasks=Y)


@pytest.mark.parametrize("stream", [False, True], ids=["resident", "stream"])
@pytest.mark.parametrize("end", ["\n", ""], ids=["line", "cut"])
@pytest.mark.parametrize("row", ['1,"abc,0', '1,a,"0'], ids=["within", "last"])
def test_a_quote_that_is_never_closed_is_a_fault_of_its_row(tmp_path: Path, row: str, end: str, stream: bool) -> None:
    path = csv(tmp_path, lines(60, r51=row).rstrip("\n") + end)
    with pytest.raises(MtlError, match=r"row 51.*: opens a quote that is never closed, so that all that follows"):
        load(path, tasks=Y, stream=stream)
    data = load(path, tasks=Y, stream=stream, on_error="skip")
    assert sum(map(len, data.splits.values())) == 50
    assert any("opens a quote that is never closed" in note for note in data.notes)


def test_a_quote_within_a_field_opens_nothing(tmp_path: Path) -> None:
    text = lines(60, r7='1,5" pipe,0', r60='1,5",1').replace("x,c,y", 'x,size 5",y')
    data = load(csv(tmp_path, text), tasks=Y, columns={'size 5"': "categorical"})
    assert sum(map(len, data.splits.values())) == 60


def test_an_inch_does_not_make_one_block_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "BYTES", 64)
    table = source.Source.at(csv(tmp_path, lines(60, r7='1,5" pipe,0')), [""])
    assert table.rows == 60
    assert max(block.rows for block in table.blocks) < 15


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["lf", "crlf"])
def test_the_name_of_a_column_may_take_several_lines(tmp_path: Path, end: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(lines(60, r9="one,a,0").replace("x,c,y", '"x\n 1",c,y').replace("\n", end).encode())
    data = load(path, tasks=Y, on_error="skip")
    assert data.columns[0].column == "x 1"
    assert any("row 9 (line 11)" in note for note in data.notes)
    path.write_text('"x,c,y\n1,a,0\n')
    with pytest.raises(MtlError, match=r"t\.csv: its first line opens a quote that is never closed"):
        load(path, tasks=Y)


def test_marks_within_quotes_separate_nothing(tmp_path: Path) -> None:
    data = load(csv(tmp_path, lines().replace(",", ";").replace("c;", '"c, d, e, f";', 1)), tasks=Y)
    assert [use.column for use in data.columns] == ["x", "c, d, e, f", "y"]
