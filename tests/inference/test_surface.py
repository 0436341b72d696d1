"""Where in a text its symbols are."""

from fairseq_hmrnn.inference.surface import symbol_ends, unknown_message


def test_words_and_pieces_are_found_where_they_stand():
    assert symbol_ends(" ka  lumo\n", ["ka", "lumo"]) == [3, 9]
    assert symbol_ends("ka lumo!", ["\u2581ka", "\u2581", "lu", "mo", "!"]) == [2, 3, 5, 7, 8]  # sentencepiece
    assert symbol_ends("lumo @@ ka", ["lu@@", "mo", "@@", "ka"]) == [2, 4, 7, 10]  # subword-nmt
    assert symbol_ends("", []) == []


def test_a_text_that_its_tokenizer_changes_has_none():
    assert symbol_ends("\ufb01n", ["\u2581fi", "n"]) is None


def test_few_of_many_unknown_symbols_are_named():
    assert unknown_message("abba") == "not in the dictionary, read as <unk>: 'a' 'b'"
    assert "'e' and 2 more" in unknown_message("abcdefg")
