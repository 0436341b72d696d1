"""The synthetic language: known at both levels, and the same for the same seed."""

from fairseq_hmrnn.data.synthetic import SyntheticLanguage


def test_words_and_phrases_are_those_of_the_text():
    drawn = SyntheticLanguage(seed=3).draw(20, seed=1)
    assert drawn.words.replace("|", "") == drawn.phrases.replace("|", "") == drawn.text
    assert drawn.text.count("\n") == 20 and " " not in drawn.text
    lexicon = set(drawn.words.replace("\n", "").split("|")) - {""}
    assert all(3 <= len(word) <= 6 for word in lexicon) and 20 < len(lexicon) <= 6 * 4 * 4
    words = {stop for stop, _ in ends(drawn.words)}
    phrases = {stop for stop, _ in ends(drawn.phrases)}
    assert phrases < words and 1.5 < len(words) / len(phrases) < 4.5


def ends(segmented):
    """(characters read, segment) at each separator."""
    read = 0
    for segment in segmented.split("|")[:-1]:
        read += len(segment)
        yield read, segment


def test_seeds():
    language = SyntheticLanguage(seed=3)
    assert language.draw(5, seed=1) == SyntheticLanguage(seed=3).draw(5, seed=1)
    assert language.draw(5, seed=1) != language.draw(5, seed=2)
    assert language.draw(5, seed=1) != SyntheticLanguage(seed=4).draw(5, seed=1)
