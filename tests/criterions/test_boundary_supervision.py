"""Targets of the supervised detector, on texts small enough to read them off."""

import pytest
import torch
from small_texts import dictionary_of

from fairseq_hmrnn.criterions.boundary_supervision import build_supervision, whitespace_indices
from fairseq_hmrnn.data.characters import CharacterDictionary, encode

TEXT = "to be or\nnot\tto be\n"


@pytest.fixture
def dictionary():
    return dictionary_of(encode(TEXT + "ab|"), CharacterDictionary)


def tokens_of(dictionary, *texts):
    """The texts as rows, padded on the right."""
    rows = [torch.tensor([dictionary.index(symbol) for symbol in encode(text)]) for text in texts]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=dictionary.pad())


def marks(row):
    return "".join("X" if value else "." for value in row.tolist())


def test_whitespace(dictionary):
    target, known = build_supervision("whitespace", dictionary)(tokens_of(dictionary, TEXT, "o b"))
    assert marks(target[0]) == "..X..X..X...X..X..X"
    assert marks(target[1]).rstrip(".") == ".X" and known[1, :3].all()
    assert len(whitespace_indices(dictionary)) == 3


def test_whitespace_wants_characters_and_spaces():
    words = dictionary_of(["word"])
    with pytest.raises(ValueError, match="prepared as characters"):
        build_supervision("whitespace", words)
    letters = dictionary_of("a", CharacterDictionary)
    with pytest.raises(ValueError, match="no whitespace but the newline"):
        build_supervision("whitespace", letters)
    assert whitespace_indices(letters) == whitespace_indices(words) == [] and whitespace_indices(None) == []


def test_file(dictionary, tmp_path):
    path = tmp_path / "gold.txt"
    path.write_bytes(b"to| be| or|\n|not|\tto| be|\n")
    supervision = build_supervision(str(path), dictionary)
    target, known = supervision(tokens_of(dictionary, TEXT, "be or\nno", "\nto be"))
    assert marks(target[0]) == ".X..X..XX..X..X..X." and known[0].all()
    assert marks(target[1])[:8] == ".X..XX.." and marks(known[1]).rstrip(".") == "X" * 8
    assert marks(target[2])[:6] == "..X..X" and marks(known[2])[:7] == ".XXXXX."
    with pytest.raises(ValueError, match="not in .*gold.txt: it must be the training text"):
        supervision(tokens_of(dictionary, "be to"))
    path.write_bytes(b"to tbe tor")
    with pytest.raises(ValueError, match="holds the separator 't'.*--boundary-supervision-separator"):
        build_supervision(str(path), dictionary, "t")(tokens_of(dictionary, "to"))


def test_file_of_a_text_with_characters_that_the_dictionary_lacks(dictionary, tmp_path):
    path = tmp_path / "gold.txt"
    path.write_text("to| bé| or|\n|nöt|\tto| bè|\n", encoding="utf-8")
    supervision = build_supervision(str(path), dictionary)
    target, known = supervision(tokens_of(dictionary, "to bé or\nnöt\tto", "é or\nn", "\nto bé", "ö", "to b\u00e9"))
    assert marks(target[0]).rstrip(".") == ".X..X..XX..X..X" and known[0, :15].all()
    assert marks(target[1])[:6] == "X..XX." and known[1, :6].all()
    assert marks(target[2])[:6] == "..X..X" and marks(known[2])[:6] == ".XXXXX"
    assert not known[3].any(), "any place"
    assert marks(target[4])[:5] == ".X..X", "both places"
    with pytest.raises(ValueError, match="not in .*gold.txt: it must be the training text"):
        supervision(tokens_of(dictionary, "to or"))
    path.write_text("be| to| " * 2000 + "be é|r", encoding="utf-8")  # what is known of a row is there 2,000 times
    target, known = build_supervision(str(path), dictionary)(tokens_of(dictionary, "be ér"))
    assert marks(target[0]) == "...X." and known.all()


def test_bad_files(dictionary, tmp_path):
    with pytest.raises(ValueError, match="there is no file nowhere.txt"):
        build_supervision("nowhere.txt", dictionary)
    with pytest.raises(ValueError, match="there is no file x.model"):
        build_supervision("sentencepiece:x.model", dictionary)
    (tmp_path / "a:b").write_bytes(b"to| \xe9")
    for source, message in (("", "a:b is not UTF-8"), ("sentencepiece:", "a:b is not a sentencepiece model")):
        with pytest.raises(ValueError, match=message):
            build_supervision(f"{source}{tmp_path / 'a:b'}", dictionary)
    (tmp_path / "plain.txt").write_text(TEXT)
    with pytest.raises(ValueError, match="no separator '|'"):
        build_supervision(str(tmp_path / "plain.txt"), dictionary)


def test_sentencepiece(dictionary, tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(["to be or not to be"] * 50))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(tmp_path / "m"), model_type="word", vocab_size=7, minloglevel=2
    )
    supervision = build_supervision(f"sentencepiece:{tmp_path / 'm.model'}", dictionary)
    target, known = supervision(tokens_of(dictionary, "to be or\nnot to", "tobe"))
    # The first and the last word may go on outside the row; each space belongs to the word after it.
    assert marks(known[0]) == "...XXXXXXXXXX.."
    assert marks(target[0]) == "....X..XX..X..."
    assert not known[1].any()
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(tmp_path / "c"), model_type="char", minloglevel=2
    )
    corpus.write_text("\n".join(["\tto be\u00a0or", "not to\tbe\r"] * 50))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(tmp_path / "i"), model_type="unigram", vocab_size=14, minloglevel=2,
        normalization_rule_name="identity", remove_extra_whitespaces=False,
    )  # fmt: skip
    supervision = build_supervision(f"sentencepiece:{tmp_path / 'i.model'}", dictionary)
    target, known = supervision(tokens_of(dictionary, "to be\n\tto\u00a0be\r\n"))  # white space that is no separator
    assert known[0].any() and target[0][known[0]].any()
    with pytest.raises(ValueError, match="c.model every character is a piece of its own: give a model of longer"):
        build_supervision(f"sentencepiece:{tmp_path / 'c.model'}", dictionary)


def test_a_file_for_rows_that_begin_with_the_space_of_sentencepiece(dictionary, tmp_path):
    path = tmp_path / "gold.txt"
    path.write_bytes(b"to |be or\nnot| to be\n")
    target, known = build_supervision(str(path), dictionary)(tokens_of(dictionary, " to be or\n", " not to be\n"))
    assert marks(known[0]) == ".XXXXXXXXX." and marks(known[1]) == ".XXXXXXXXXX"
    assert marks(target[0]).rstrip(".") == "...X" and marks(target[1]).rstrip(".") == "...X"


def test_a_line_that_is_the_end_of_an_earlier_one(dictionary, tmp_path):
    path = tmp_path / "gold.txt"
    path.write_bytes(b"to be or\nb|e o|r\n")
    target, known = build_supervision(str(path), dictionary)(tokens_of(dictionary, " be or\n", " be or\nb", "e or\n"))
    assert marks(known[0]).rstrip(".") == ".XXXXXX" and marks(target[0]).rstrip(".") == ".X..X"
    assert known[1].all() and marks(target[1]) == ".......X"  # of running text, which is there as it is
    assert marks(target[2]).rstrip(".") == "" and marks(known[2]).rstrip(".") == "XX.XX"  # by the line they differ


def test_of_a_row_with_several_boundaries_what_they_agree_on_is_known(dictionary, tmp_path):
    path = tmp_path / "gold.txt"
    path.write_bytes(b"to| be\nto| b|e\nor| not or| not or\nor| not or| no|t or\n")
    target, known = build_supervision(str(path), dictionary)(
        tokens_of(dictionary, "to be\n", "\nto be\n", "or not or not or\n", "e\nor not or no", " to be\n")
    )
    assert marks(known[0]).rstrip(".") == "XXX.XX" and marks(target[0]).rstrip(".") == ".X"
    assert marks(known[1]).rstrip(".") == "XXXXXXX" and marks(target[1]).rstrip(".") == "..X.X"  # of one place
    assert marks(known[2]) == "XXXXXXXXXXX.XXXXX" and marks(target[2]).rstrip(".") == ".X......X"
    assert marks(known[3]).rstrip(".") == "X" * 14
    assert marks(known[4]).rstrip(".") == ".XXX.XX" and marks(target[4]).rstrip(".") == "..X"
