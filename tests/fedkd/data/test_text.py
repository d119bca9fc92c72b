"""Texts: formats, vocabulary, splits, and networks that read them."""

import zipfile

import pytest
import torch
from torch.testing import assert_close

from fedkd.data.text import SentencePolarity, TextRows, Trec, vocabulary_of
from fedkd.errors import ConfigError
from fedkd.models.text import FastText, TextCNN
from fedkd.types import Task

WORDS = {"max_length": 4, "min_count": 1, "max_vocabulary": None}
TRAIN = "DESC:manner How do birds fly ?\nHUM:ind Who flew first\xa0?\nHUM:gr Who\n"
TEST = "HUM:ind Who swims ?\n"


def trec_files(folder, train: str = TRAIN):
    with zipfile.ZipFile(folder / "qc.zip", "w") as file:
        file.writestr("qc/train.txt", train.encode("latin-1"))
        file.writestr("qc/test.txt", TEST.encode("latin-1"))
    return str(folder / "qc.zip")


def test_trec_s_questions_are_read_from_a_zip_file(tmp_path):
    """The vocabulary is that of the training questions; a word of the test alone is unknown."""
    task, train, test = Trec(root=trec_files(tmp_path), labels="coarse", **WORDS)()
    assert task.class_names == ("DESC", "HUM") and task.shape == (4,) and task.input == "tokens" and train.tokens and test.tokens
    assert task.vocabulary == ("<pad>", "<unknown>", "?", "who", "birds", "do", "first", "flew", "fly", "how")
    assert [[task.vocabulary[i] for i in row] for row in train.x] == [
        ["how", "do", "birds", "fly"], ["who", "flew", "first", "?"], ["who", "<pad>", "<pad>", "<pad>"],
    ]  # fmt: skip
    assert train.y.tolist() == [0, 1, 1] and test.x.tolist() == [[3, 1, 2, 0]]
    assert train.images(torch.tensor([0])).dtype == torch.int64
    fine = Trec(root=trec_files(tmp_path), labels="fine", **WORDS)()
    assert fine[0].class_names == ("DESC:manner", "HUM:gr", "HUM:ind") and fine[1].digest != train.digest


def test_vocabularies_hold_the_most_frequent_words():
    texts = ["b a a", "c B d", "e"]
    assert vocabulary_of(texts, 1, None) == ("<pad>", "<unknown>", "a", "b", "c", "d", "e")
    assert vocabulary_of(texts, 2, None) == ("<pad>", "<unknown>", "a", "b") and vocabulary_of(texts, 1, 3)[2:] == ("a",)


def test_sentences_are_divided_by_the_seed_of_the_split(tmp_path):
    for name, word in (("neg", "bad"), ("pos", "good")):
        (tmp_path / f"rt-polarity.{name}").write_text("".join(f"{word} film {n}\n" for n in range(10)), encoding="utf-8")
    found = [SentencePolarity(root=str(tmp_path), test_fraction=0.2, split_seed=seed, **WORDS)() for seed in (0, 0, 1)]
    task, train, test = found[0]
    assert (len(train), len(test), task.class_names) == (16, 4, ("negative", "positive")) and test.y.tolist() == [0, 0, 1, 1]
    assert found[1][2].digest == test.digest != found[2][2].digest


def test_rows_of_texts_have_groups(tmp_path):
    (tmp_path / "mail.csv").write_text('text,label,author\n"hello, you",ham,b\nbuy now,spam,a\nhello,ham,a\nbuy,spam,b\n', encoding="utf-8")
    keys = {"text_column": "text", "label_column": "label", "test_fraction": 0.5, "split_seed": 0}
    task, train, test = TextRows(root=str(tmp_path / "mail.csv"), group_column="author", **keys, **WORDS)()
    assert (task.name, task.class_names, len(train), len(test)) == ("mail", ("ham", "spam"), 2, 2)
    assert train.group_names == ("a", "b") and sorted([*train.groups.tolist(), *test.groups.tolist()]) == [0, 0, 1, 1]
    with pytest.raises(ConfigError, match="text_column must be one of the columns of .*: text, label, author, got 'body'"):
        TextRows(root=str(tmp_path / "mail.csv"), group_column=None, **{**keys, "text_column": "body"}, **WORDS)()


def test_wrong_texts_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="root must hold lines 'CLASS:finer question', got .*line 1 of train.txt"):
        Trec(root=trec_files(tmp_path, "a question\n"), labels="coarse", **WORDS)()
    with pytest.raises(ConfigError, match="root must be a folder or a zip file that holds one file train.txt"):
        Trec(root=str(tmp_path), labels="coarse", **WORDS)()
    with pytest.raises(ConfigError, match="max_vocabulary must be > 2, or null, got 2"):
        Trec(root=str(tmp_path), labels="coarse", **{**WORDS, "max_vocabulary": 2})


def test_fast_text_leaves_padding_out_of_the_mean():
    task = Task("t", (4,), 2, input="tokens", vocabulary=("<pad>", "<unknown>", "a", "b"))
    masked, padded = (FastText(task, embedding_size=3, mean=mean) for mean in ("masked", "padded"))
    x, weight = torch.tensor([[2, 3, 0, 0], [0, 0, 0, 0]]), masked.stages[0].embedding.weight
    assert_close(masked(x).stages[0], torch.stack([(weight[2] + weight[3]) / 2, torch.zeros(3)]))
    padded.load_state_dict(masked.state_dict())
    assert_close(padded(x).stages[0], masked(x).stages[0] / 2)


def test_text_cnn_takes_texts_as_long_as_its_widths():
    task = Task("t", (4,), 2, input="tokens", vocabulary=("<pad>", "<unknown>", "a", "b"))
    assert TextCNN(task, embedding_size=3, widths=[4, 2], channels=5, dropout=0.0)(task.inputs(2)).embedding.shape == (2, 10)
    with pytest.raises(ConfigError, match=r"widths must be one or more numbers in 1\.\.4, the length of a text, got \[5\]"):
        TextCNN(task, embedding_size=3, widths=[5], channels=5, dropout=0.0)
