"""The codec loses nothing, on its own, through a dictionary file and through fairseq's way of calling it."""

import pytest
import torch
from fairseq import utils
from fairseq.data import Dictionary
from fairseq.tokenizer import tokenize_line
from hypothesis import given, settings
from hypothesis import strategies as st
from small_texts import dictionary_of

from fairseq_hmrnn.data.characters import (
    CharacterCodec,
    CharacterDictionary,
    decode,
    encode,
    is_character_dictionary,
)

AWKWARD = [
    "",
    " leading and trailing ",
    "  ",
    "\ttab\r\n",
    "no-break\u00a0space, ideographic\u3000space",
    "\x00\x01\x1b\x1c\x1d\x1e\x1f\x7f\x80\x85\x9f",
    "\u2028\u2029\u200b\ufeff\u180e\u2003",
    "\n\nempty lines\n\n\n",
    "lone surrogates \ud800\udfff",
    "a literal \u2581 and <U+0009> and </s> and <unk> <s> <pad>",
    "<U+2581>\u2581<U+0020>",
    "1 2 #fairseq:overwrite",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 e\u0301 \u00e9 \U0010ffff",
]
any_text = st.text(st.characters(exclude_categories=("Cs",)))
awkward_text = st.text(st.sampled_from(sorted(set("".join(AWKWARD)))))


def ids(texts):
    return [ascii(text)[:30] for text in texts]


def through_dictionary(text, folder):
    """text -> symbols -> a dictionary that was saved and loaded -> indices -> string -> text, as fairseq does it."""
    codec, built = CharacterCodec(), CharacterDictionary()
    built.encode_line(codec.encode(text), append_eos=False)
    built.save(str(folder / "dict.txt"))
    loaded = CharacterDictionary.load(str(folder / "dict.txt"))
    assert loaded.symbols == built.symbols and is_character_dictionary(loaded)
    tokens = loaded.encode_line(codec.encode(text), add_if_not_exist=False, append_eos=False)
    assert len(tokens) == len(text) and loaded.unk() not in tokens
    return codec.decode(loaded.string(tokens))


@pytest.mark.parametrize("text", AWKWARD, ids=ids(AWKWARD))
def test_awkward_text_comes_back(text, tmp_path):
    assert decode(encode(text)) == text
    assert through_dictionary(text, tmp_path) == text


@settings(deadline=None)
@given(st.one_of(any_text, awkward_text))
def test_any_text_comes_back(text):
    symbols = encode(text)
    assert len(symbols) == len(text)
    assert decode(symbols) == text
    assert tokenize_line(CharacterCodec().encode(text)) == symbols
    assert CharacterCodec().decode(CharacterCodec().encode(text)) == text


@settings(deadline=None, max_examples=50)
@given(text=st.one_of(any_text, awkward_text))
def test_any_text_comes_back_through_a_dictionary_file(text, tmp_path_factory):
    assert through_dictionary(text, tmp_path_factory.mktemp("dictionary")) == text


def test_every_single_character_has_its_own_symbol_that_fairseq_keeps_whole():
    characters = [chr(point) for point in range(0x110000)]
    symbols = encode("".join(characters))
    assert len(set(symbols)) == len(symbols)
    assert tokenize_line(" ".join(symbols)) == symbols
    assert decode(symbols) == "".join(characters)


def test_symbols_are_as_documented():
    assert encode("a \t\n\u2581") == ["a", "\u2581", "<U+0009>", "</s>", "<U+2581>"]
    assert CharacterCodec().encode("to be") == "t o \u2581 b e"


def test_unknown_is_one_replacement_character_and_bos_and_pad_have_no_text():
    assert decode(["<s>", "a", "<unk>", "<<unk>>", "<pad>"]) == "a\ufffd\ufffd"


@pytest.mark.parametrize("symbol", ["the", "madeupword0000", "<U+110000>", "<U+41>", ""])
def test_decode_refuses_what_is_no_character(symbol):
    with pytest.raises(ValueError, match="not a symbol"):
        decode([symbol])


@pytest.mark.parametrize(
    "symbols, answer",
    [
        ([], True),
        (["a", "\u2581", "<U+0009>", "<U+2581>"], True),
        (["a", "the"], False),
        (["a", "madeupword0000"], False),
        (["<U+0041>"], False),  # an escape that the codec would not write
        (["\u2581the"], False),
    ],
)
def test_is_character_dictionary(symbols, answer):
    assert is_character_dictionary(dictionary_of(symbols)) is answer


@pytest.fixture
def dictionary():
    return dictionary_of(encode("ab "), CharacterDictionary)


class TestString:
    def tokens(self, dictionary, text):
        return dictionary.encode_line(CharacterCodec().encode(text), add_if_not_exist=False, append_eos=False)

    def test_keeps_newlines_where_fairseq_drops_them(self, dictionary):
        tokens = self.tokens(dictionary, "a\n b\n")
        assert dictionary.string(tokens) == "a </s> \u2581 b </s>"
        assert Dictionary.string(dictionary, tokens) == "a \u2581 b"

    def test_drops_bos_and_pad_and_what_the_caller_names(self, dictionary):
        tokens = [dictionary.bos(), *self.tokens(dictionary, "a\nb").tolist(), dictionary.eos(), dictionary.pad()]
        assert dictionary.string(torch.tensor(tokens)) == "a </s> b </s>"
        assert dictionary.string(tokens, extra_symbols_to_ignore={dictionary.eos()}) == "a b"
        assert dictionary.string(tokens, None, False, [dictionary.index("a")]) == "</s> b </s>"

    def test_other_arguments_work_as_in_fairseq(self, dictionary):
        tokens = self.tokens(dictionary, "a?")
        assert dictionary.string(tokens) == "a <unk>"
        assert dictionary.string(tokens, escape_unk=True) == "a <<unk>>"
        assert dictionary.string(tokens, unk_string="?", separator="", include_eos=True) == "a?"
        batch = torch.stack([tokens, self.tokens(dictionary, "\nb")])
        assert dictionary.string(batch, separator="") == "a<unk>\n</s>b"

    def test_as_fairseq_generate_calls_it(self, dictionary):
        """With a stop symbol that is not the newline, the hypothesis comes back whole."""
        text = " a\n\nb "
        tokens = torch.tensor([*self.tokens(dictionary, text).tolist(), dictionary.bos()])
        _, hypothesis, _ = utils.post_process_prediction(
            tokens,
            src_str="",
            alignment=None,
            align_dict=None,
            tgt_dict=dictionary,
            remove_bpe=None,
            extra_symbols_to_ignore={dictionary.bos()},
        )
        assert CharacterCodec().decode(hypothesis) == text
