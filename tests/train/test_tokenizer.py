"""The tokenizer: words are tokens, no character is unknown, and saved it is the same."""

from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from darkroom_train.tokenizer import END, load_tokenizer, save_tokenizer, token_ids, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return train_tokenizer(["a red star", "a blue heart on the left"] * 5, vocabulary=560, max_length=24)


def test_known_words_are_one_token(tokenizer: CLIPTokenizer) -> None:
    assert tokenizer.tokenize("A Red star  on the LEFT") == [
        "a</w>",
        "red</w>",
        "star</w>",
        "on</w>",
        "the</w>",
        "left</w>",
    ]


@pytest.mark.parametrize("text", ["zebra", "ß", "日本", "🚀 up", "x!?", "1 2"])
def test_no_character_is_unknown(tokenizer: CLIPTokenizer, text: str) -> None:
    ids = tokenizer(text).input_ids
    assert ids.count(tokenizer.eos_token_id) == 1
    assert ids[0] == tokenizer.bos_token_id


def test_ids_are_padded_and_cut_to_one_length(tokenizer: CLIPTokenizer) -> None:
    ids = token_ids(tokenizer, ["", "a red star", "star " * 40])
    assert [len(row) for row in ids] == [24, 24, 24]
    assert all(row[-1] == tokenizer.convert_tokens_to_ids(END) for row in ids)


def test_the_vocabulary_has_the_size_asked_for_or_less(tokenizer: CLIPTokenizer) -> None:
    assert 514 < len(tokenizer) <= 560


def test_saved_tokenizer_gives_the_same_ids(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    save_tokenizer(tokenizer, tmp_path)
    loaded = load_tokenizer(tmp_path)
    texts = ["a red star", "zebra on the left", ""]
    assert token_ids(loaded, texts) == token_ids(tokenizer, texts)
    assert loaded.model_max_length == 24
