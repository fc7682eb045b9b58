"""Files of sentences, pairs, triplets and groups, as people have them; and batches of them."""

from __future__ import annotations

import gzip
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from xmodal.data.sentence_batches import SentenceBatches
from xmodal.data.sentences import form_of, read_sentences
from xmodal.data.texts import stream_texts
from xmodal.errors import InputError

Written = Callable[..., Path]

TABLES = {
    "sentence,source\nOne cat.,a\nTwo dogs.,b\n": ("sentences", ["One cat."]),
    "anything\nOne cat.\nTwo dogs.\n": ("sentences", ["One cat."]),
    "Anchor,Positive\none,uno\ntwo,due\n": ("pairs", ["one", "uno"]),
    "score,sentence1,sentence2\n1,one,uno\n2,two,due\n": ("pairs", ["one", "uno"]),
    "sent0,sent1,hard_neg\none,uno,due\ntwo,due,tre\n": ("triplets", ["one", "uno", "due"]),
    "source,anchor,entailment,contradiction\ns,one,uno,due\ns,two,due,tre\n": ("triplets", ["one", "uno", "due"]),
    "image,caption1,caption2,caption3\n1.jpg,a,b,a\n2.jpg,c,,d\n3.jpg,e,,\n": ("groups", ["a", "b"]),
}


@pytest.mark.parametrize("text", TABLES)
def test_the_form_follows_from_the_names_of_columns(text: str, written: Written) -> None:
    form, first = TABLES[text]
    path = written(text)
    found = read_sentences(str(path))
    assert (found.form, found.texts(0), len(found)) == (form, first, 2)
    assert form_of(str(path)) == form


@pytest.mark.parametrize(
    ("options", "form", "first"),
    [
        ({"columns": ("b",)}, "sentences", ["uno"]),
        ({"columns": ("c", "a")}, "pairs", ["eins", "one"]),
        ({"columns": ("a", "b", "c")}, "triplets", ["one", "uno", "eins"]),
        ({"columns": ("a", "b", "c"), "form": "groups"}, "groups", ["one", "uno", "eins"]),
        ({"columns": ("a",), "group": "g"}, "groups", ["one", "two"]),
        ({"columns": ("a", "b"), "group": "g"}, "groups", ["one", "uno", "two", "due"]),
    ],
)
def test_columns_and_form_can_be_named(options: dict, form: str, first: list[str], written: Written) -> None:
    path = written("g,a,b,c\n1,one,uno,eins\n1,two,due,zwei\n2,three,tre,drei\n2,four,quattro,vier\n")
    found = read_sentences(str(path), **options)
    assert (found.form, found.texts(0)) == (form, first)


def test_lines_of_a_plain_or_gzipped_file(tmp_path: Path) -> None:
    text = "\ufeffOne cat.\r\n\r\n  Two\tdogs. \nOne cat.\nnul \0 here\n".encode() + b"br\xffken\n"
    (tmp_path / "plain.txt").write_bytes(text)
    (tmp_path / "packed.txt.gz").write_bytes(gzip.compress(text))
    for name in ("plain.txt", "packed.txt.gz"):
        found = read_sentences(str(tmp_path / name))
        assert list(found.every_text()) == ["One cat.", "Two dogs.", "nul \ufffd here", "br\ufffdken"]
        assert found.dropped == {"no text": 1, "the texts of one before": 1}
        assert found.replaced == 2
        assert found.key(1) == "Two dogs."
        counted: Counter[str] = Counter()
        lines = list(stream_texts(str(tmp_path / name), replaced=counted))
        assert lines[:3] == ["One cat.", "", "Two\tdogs."]  # a line a row, so that numbers of rows are numbers of lines
        assert counted.total() == 2


def test_a_column_of_a_table_is_streamed(written: Written) -> None:
    path = written('id\tsentence\n1\tsays "hello\n2\t\n3\thttp://127.0.0.1:1/a.jpg\n', "t.tsv")
    assert list(stream_texts(str(path))) == ['says "hello', "", "http://127.0.0.1:1/a.jpg"]
    assert list(stream_texts(str(path), "id")) == ["1", "2", "3"]


def test_rows_of_the_training_split_alone(written: Written) -> None:
    path = written("sentence,split\na,train\nb,dev\nc,train\nd,test\n")
    assert list(read_sentences(str(path)).every_text()) == ["a", "c"]
    with pytest.raises(InputError, match=r"no rows of split 'gone'; it has train \(2\), val \(1\), test \(1\)"):
        read_sentences(str(path), split="gone")


def test_texts_of_a_test_are_left_out_whatever_their_case_and_punctuation(written: Written) -> None:
    data = written(
        "anchor,positive\nA man eats.,Someone eats.\nA dog runs.,It runs!\nBirds fly.,They fly.\nX y z,Z y x\n"
    )
    test = written("sentence1\tsentence2\tscore\na man EATS\tnothing\t1\nother\tthey fly\t2\n", "test.tsv")
    found = read_sentences(str(data), leave_out=[str(test)])
    assert [found.texts(i)[0] for i in range(len(found))] == ["A dog runs.", "X y z"]
    assert found.dropped["a text that is to be left out"] == 2


def test_a_data_set_in_the_hubs_form(tmp_path: Path) -> None:
    import datasets

    rows = {"anchor": ["a", "b"], "positive": ["c", "d"], "score": [1.0, 2.0], "words": [["x", "y"], ["z"]]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "train.parquet")
    found = read_sentences(f"hf-dataset:{tmp_path}")
    assert (found.form, found.texts(1)) == ("pairs", ["b", "d"])
    assert read_sentences(f"hf-dataset:{tmp_path}", columns=("words",)).texts(0) == ["x y"]
    with pytest.raises(InputError, match="no split 'dev'; there are: train"):
        read_sentences(f"hf-dataset:{tmp_path}", split="dev")


WRONG = {
    "": "is empty",
    "sentence\n": "no rows of sentences, at least 2 are needed",
    "sentence\nonly one\nonly one\n": r"1 row of sentences, at least 2 .* \(left out: 1 with the texts of one before\)",
    "alpha,beta\na,b\n": "no column of texts under a usual name.*Its columns are: alpha, beta. Name one by --columns",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_cannot_be_trained_on_is_said(text: str, written: Written) -> None:
    with pytest.raises(InputError) as caught:
        read_sentences(str(written(text)))
    assert re.search(WRONG[text], " ".join(str(caught.value).split()))


def test_columns_that_do_not_fit_are_said(written: Written) -> None:
    table, lines = written("a,b\n1,2\n3,4\n"), written("one\ntwo\n", "t.txt")
    with pytest.raises(InputError, match="no column 'c'; there are: a, b"):
        read_sentences(str(table), ("a", "c"))
    with pytest.raises(InputError, match="triplets need 3 columns of text; .* gives 2"):
        read_sentences(str(table), ("a", "b"), form="triplets")
    with pytest.raises(InputError, match="is a file of lines, one sentence each"):
        read_sentences(str(lines), ("a",))
    with pytest.raises(InputError, match="no column 'nowhere'"):
        read_sentences(str(table), ("a",), group="nowhere")
    with pytest.raises(InputError, match="No file"):
        read_sentences("nowhere.txt")


def words(texts: Sequence[str]) -> torch.Tensor:
    return torch.tensor([[ord(c) for c in text] for text in texts])


def test_batches_hold_every_row_once_an_epoch_and_their_processes_share_them(written: Written) -> None:
    path = written("anchor,positive\n" + "".join(f"{chr(97 + i)},{chr(65 + i)}\n" for i in range(20)))
    source = read_sentences(str(path))
    whole = SentenceBatches(source, batch=10, part=(0, 10), seed=0, tokenize=words)
    batch, skipped = whole[0]
    assert (batch["text"].shape, batch["text_id"].shape, skipped) == ((10, 2, 1), (10, 2), [])
    assert torch.equal(batch["text"][:, 0, 0], batch["text"][:, 1, 0] + 32)
    rows = torch.cat([whole[step][0]["row"] for step in range(2)])
    assert sorted(rows.tolist()) == list(range(20))
    parts = [SentenceBatches(source, batch=10, part=p, seed=0, tokenize=words)[1][0] for p in ((0, 4), (4, 10))]
    for name, value in whole[1][0].items():
        assert torch.equal(value, torch.cat([part[name] for part in parts]))


def test_a_group_gives_other_members_each_epoch_and_none_twice(written: Written) -> None:
    path = written("c1,c2,c3,c4\na,b,c,d\ne,f,g,h\n")
    source = read_sentences(str(path))
    batches = SentenceBatches(source, batch=2, part=(0, 2), seed=0, tokenize=words, members=3)
    seen = set()
    for epoch in range(12):
        text = batches[epoch][0]["text"].squeeze(-1)
        for row in text.tolist():
            assert len(set(row)) == 3
            assert len({"abcd".find(chr(c)) >= 0 for c in row}) == 1  # of one group
            seen.add(tuple(sorted(row)))
    assert len(seen) == 8  # each group's four choices of three
