"""Ids end with </s> and are padded with it; nothing in a text can become a special token."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from unialign_jax.data.tasks import Turn
from unialign_jax.data.tokenizer import TextTokenizer, train_tokenizer, word_tokenizer
from unialign_jax.errors import UserError

WORDS = ["a", "red", "cat", "on", "mat", "blue", "dog", "house", "coins"]
TEXTS = ["a red cat on a mat", "a blue dog in a house", "four rows of old coins"]


@pytest.fixture(scope="module")
def small():
    return train_tokenizer(TEXTS, 200)


@pytest.fixture
def like_t5():
    """T5's layout at a small size: a unigram model, 100 extra ids, </s> added at the end."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("▁cat", -3.0)]
    pieces += [(letter, -5.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    tokenizer = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    tokenizer.decoder = decoders.Metaspace()
    extras = [f"<extra_id_{k}>" for k in range(99, -1, -1)]
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>", *extras])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=4)
    return tokenizer


def test_a_trained_tokenizer_has_the_places_of_t5(small):
    assert small.vocab_size == 200
    assert (small.end_id, small.pad_id, small.mask_id) == (1, 1, 199)
    assert TextTokenizer(small._tokenizer, pad="pad").pad_id == 0


def test_t5s_file_loads_the_same_way(like_t5, tmp_path):
    path = tmp_path / "tokenizer.json"
    like_t5.save(str(path))
    tokenizer = TextTokenizer.from_file(path)
    # The mask is the last id, as in T5 (32099 of 32100).
    assert tokenizer.mask_id == tokenizer.vocab_size - 1
    ids, truncated = tokenizer.encode("a cat", 8)
    assert ids.tolist() == [3, 5, 4, 1, 1, 1, 1, 1]
    assert not truncated
    assert tokenizer.decode(ids) == "a cat"


def test_the_null_prompt_is_all_end_tokens(small, like_t5):
    for tokenizer in (small, TextTokenizer(like_t5)):
        assert tokenizer.null_ids(5).tolist() == [[1, 1, 1, 1, 1]]
        assert tokenizer.encode("", 3)[0].tolist() == [1, 1, 1]


@given(words=st.lists(st.sampled_from(WORDS), max_size=9))
@settings(max_examples=50, deadline=None)
def test_a_text_that_fits_comes_back(small, words):
    text = " ".join(words)
    ids, truncated = small.encode(text, 64)
    assert ids.shape == (64,)
    assert ids.dtype == np.int32
    assert not truncated
    assert small.decode(ids) == text


def test_a_long_text_is_cut_keeps_its_end_token_and_is_counted(small):
    pieces = small.pieces(TEXTS[0])
    ids, truncated = small.encode(TEXTS[0], 4)
    assert ids.tolist() == [*pieces[:3], 1]
    assert truncated
    exact, truncated = small.encode(TEXTS[0], len(pieces) + 1)
    assert exact.tolist() == [*pieces, 1]
    assert not truncated
    batch, count = small.encode_batch([TEXTS[0], "a"], 4)
    assert batch.shape == (2, 4)
    assert count == 1


def test_an_empty_batch_has_no_rows(small):
    assert small.encode_batch([], 4)[0].shape == (0, 4)


def test_special_tokens_spelt_in_a_text_stay_text(small):
    ids, _ = small.encode("a <extra_id_0> b </s> c <pad>", 64)
    assert small.mask_id not in ids
    assert small.decode(ids) == "a <extra_id_0> b </s> c <pad>"


def test_decoding_stops_at_the_first_end_and_drops_masks_and_padding(small):
    cat = small.pieces("cat")
    assert small.decode([*cat, small.mask_id, 0, 1, *cat]) == "cat"
    assert small.decode_batch(np.array([[1, 5], [1, 1]])) == ["", ""]
    assert small.decode([10**6, -1, *cat]) == "cat"


def test_a_conversation_has_no_end_between_question_and_answer(small):
    turns = [Turn("Q: what is it? A: ", False), Turn("a cat", True)]
    ids, label, truncated = small.encode_turns(turns, 48)
    question, answer = small.pieces(turns[0].text), small.pieces(turns[1].text)
    used = len(question) + len(answer)
    assert ids[:used].tolist() == question + answer
    assert (ids[used:] == 1).all()
    assert not truncated
    # Answers, and the end and padding after them, may be masked; the question may not.
    assert not label[: len(question)].any()
    assert label[len(question) :].all()


def test_later_questions_are_not_masked_either(small):
    turns = [Turn("a", False), Turn("cat", True), Turn("dog", False), Turn("mat", True)]
    _, label, _ = small.encode_turns(turns, 64)
    place = 0
    for turn in turns:
        count = len(small.pieces(turn.text))
        assert (label[place : place + count] == turn.is_answer).all()
        place += count
    assert label[place:].all()


def test_a_conversation_that_is_cut_still_ends(small):
    ids, label, truncated = small.encode_turns([Turn("a red cat on a mat", False)], 4)
    assert ids[-1] == 1
    assert label.tolist() == [False, False, False, True]
    assert truncated


def test_a_question_prompt_ends_without_an_end_token_and_masks_the_rest(small):
    rows = small.encode_question(["a cat", "dog"], 20)
    question = small.pieces("a cat")
    assert rows[0].tolist() == question + [small.mask_id] * (20 - len(question))
    assert small.end_id not in rows


def test_a_question_without_room_for_an_answer_is_an_error(small):
    with pytest.raises(UserError, match="shorten it or raise the text length"):
        small.encode_question(["a red cat on a mat"], 3)


def test_it_survives_the_way_to_a_worker(small):
    copy = pickle.loads(pickle.dumps(TextTokenizer(small._tokenizer, pad="pad", mask_id=7)))
    assert (copy.pad_id, copy.mask_id) == (0, 7)
    text = "a <extra_id_0> cat"
    np.testing.assert_array_equal(copy.encode(text, 40)[0][:15], small.encode(text, 40)[0][:15])


def test_training_is_reproducible_in_another_process(small, tmp_path):
    code = (
        "import sys; from unialign_jax.data.tokenizer import train_tokenizer as t;"
        f"t({TEXTS!r}, 200).save(sys.argv[1])"
    )
    path = tmp_path / "again.json"
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
    assert path.read_text() == small.to_json()


def test_more_characters_than_entries_still_fit():
    tokenizer = train_tokenizer(["".join(chr(0x4E00 + k) for k in range(500))], 150)
    assert tokenizer.vocab_size == 150
    assert tokenizer.mask_id == 149


def test_a_vocabulary_that_is_too_small_is_refused():
    with pytest.raises(UserError, match="at least 128"):
        train_tokenizer(TEXTS, 100)


@pytest.mark.parametrize("content", ["{}", "not json", '{"model": {"type": "Nothing"}}', ""])
def test_a_file_that_is_no_tokenizer_is_named(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"tokenizer\.json is not a tokenizer"):
        TextTokenizer.from_file(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no tokenizer at .*nothing\.json"):
        TextTokenizer.from_file(tmp_path / "nothing.json")


def test_a_tokenizer_without_the_tokens_is_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizers.Tokenizer(models.BPE()).save(str(path))
    with pytest.raises(UserError, match="no </s> token"):
        TextTokenizer.from_file(path)


def test_a_mask_id_outside_the_vocabulary_is_refused(small):
    with pytest.raises(UserError, match="mask id 200"):
        TextTokenizer(small._tokenizer, mask_id=200)
    with pytest.raises(UserError, match="padding 'none'"):
        TextTokenizer(small._tokenizer, pad="none")


def test_a_word_tokenizer_has_one_token_per_word_and_mark() -> None:
    tokenizer = word_tokenizer(["a red cat, a dog?", "A: cat"])
    assert tokenizer.vocab_size == 4 + len(["a", "red", "cat", ",", "dog", "?", "A", ":"])
    assert (tokenizer.end_id, tokenizer.mask_id) == (1, tokenizer.vocab_size - 1)
    for text in ("a dog, a cat", "A: red, red?", "red"):
        ids = tokenizer.pieces(text)
        assert tokenizer.decode(ids) == text
        assert len(ids) == len(
            text.replace(",", " ,").replace(":", " :").replace("?", " ?").split()
        )
    assert tokenizer.pieces("a green <extra_id_0>") == [tokenizer.pieces("a")[0], 2, 2]


def test_a_word_tokenizer_survives_its_file(tmp_path: Path) -> None:
    tokenizer = word_tokenizer(["a red cat, a dog?"])
    tokenizer.save(tmp_path / "tokenizer.json")
    read = TextTokenizer.from_file(tmp_path / "tokenizer.json")
    ids, _ = tokenizer.encode("a dog, a cat?", 12)
    assert np.array_equal(read.encode("a dog, a cat?", 12)[0], ids)
    assert read.decode(ids) == "a dog, a cat?"
