"""Text to ids and back: a thin layer over a `tokenizer.json` of the `tokenizers` library.

T5's own file and a small one trained here (`train_tokenizer`) are used alike. As the reference
trains, ids end with `</s>` and are padded with `</s>` too (uniAlignment.md 2.4).
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from unialign_jax.errors import UserError

if TYPE_CHECKING:
    from jaxtyping import Bool, Int32

    from unialign_jax.data.tasks import Turn

PAD, END, UNKNOWN, MASK = "<pad>", "</s>", "<unk>", "<extra_id_0>"
SMALLEST_VOCABULARY = 128
_ALPHABET = string.ascii_letters + string.digits + string.punctuation


class TextTokenizer:
    """Fixed-length ids of texts.

    Args:
        tokenizer: a `tokenizers.Tokenizer` with the tokens `</s>` and `<extra_id_0>`.
        pad: "end" pads with `</s>` (as the reference trains), "pad" with `<pad>`.
        mask_id: id of the mask token where it is not `<extra_id_0>`.

    Raises:
        UserError: when a token that is needed is not in the vocabulary.
    """

    def __init__(
        self, tokenizer: tokenizers.Tokenizer, *, pad: str = "end", mask_id: int | None = None
    ):
        tokenizer.no_padding()
        tokenizer.no_truncation()
        # A caption that spells out "<extra_id_0>" stays text; it must not become a mask.
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        self._pad = pad
        self.vocab_size: int = tokenizer.get_vocab_size(with_added_tokens=True)
        self.end_id = self._id_of(END)
        if pad not in ("end", "pad"):
            raise UserError(f"tokenizer padding {pad!r}: use 'end' or 'pad'")
        self.pad_id = self.end_id if pad == "end" else self._id_of(PAD)
        self.mask_id = self._id_of(MASK) if mask_id is None else mask_id
        if not 0 <= self.mask_id < self.vocab_size:
            raise UserError(f"mask id {self.mask_id} is not below {self.vocab_size} (vocabulary)")

    @classmethod
    def from_file(
        cls, path: str | Path, *, pad: str = "end", mask_id: int | None = None
    ) -> TextTokenizer:
        """Reads a `tokenizer.json`.

        Raises:
            UserError: when there is no such file or it is not a tokenizer.
        """
        path = Path(path)
        if not path.is_file():
            raise UserError(f"no tokenizer at {path}: give the path of a tokenizer.json")
        try:
            tokenizer = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
        except Exception as error:  # the library raises bare Exception for a malformed file
            raise UserError(
                f"{path} is not a tokenizer.json of the `tokenizers` library: {error}"
            ) from error
        try:
            return cls(tokenizer, pad=pad, mask_id=mask_id)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error

    def _id_of(self, token: str) -> int:
        index = self._tokenizer.token_to_id(token)
        if index is None:
            raise UserError(
                f"the tokenizer has no {token} token; T5's tokenizer.json and the ones that "
                "`unialign prepare --train-tokenizer` writes do"
            )
        return index

    def __getstate__(self) -> dict[str, Any]:
        # Data workers receive the tokenizer as text; switches set on it would not survive else.
        return {"json": self._tokenizer.to_str(), "pad": self._pad, "mask_id": self.mask_id}

    def __setstate__(self, state: dict[str, Any]) -> None:
        tokenizer = tokenizers.Tokenizer.from_str(state["json"])
        self.__init__(tokenizer, pad=state["pad"], mask_id=state["mask_id"])

    def to_json(self) -> str:
        """The content of a `tokenizer.json`."""
        return self._tokenizer.to_str(pretty=True) + "\n"

    def save(self, path: str | Path) -> None:
        """Writes a `tokenizer.json`."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    def vocabulary(self) -> dict[str, int]:
        """Every token with its id."""
        return self._tokenizer.get_vocab(with_added_tokens=True)

    def pieces(self, text: str) -> list[int]:
        """The ids of a text without end token, padding or truncation."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def _fit(self, ids: list[int], length: int) -> tuple[Int32[np.ndarray, " L"], bool]:
        row = np.full(length, self.pad_id, np.int32)
        kept = [*ids[: length - 1], self.end_id]
        row[: len(kept)] = kept
        return row, len(ids) > length - 1

    def encode(self, text: str, length: int) -> tuple[Int32[np.ndarray, " L"], bool]:
        """One text as `length` ids: pieces, `</s>`, padding. A long text keeps its `</s>`.

        Returns:
            (ids, whether the text was truncated).
        """
        return self._fit(self.pieces(text), length)

    def encode_batch(
        self, texts: Sequence[str], length: int
    ) -> tuple[Int32[np.ndarray, "B L"], int]:
        """Several texts as `encode` does; returns (ids, number of truncated texts)."""
        rows = [self.encode(text, length) for text in texts]
        ids = np.stack([row for row, _ in rows]) if rows else np.zeros((0, length), np.int32)
        return ids, sum(truncated for _, truncated in rows)

    def encode_turns(
        self, turns: Sequence[Turn], length: int
    ) -> tuple[Int32[np.ndarray, " L"], Bool[np.ndarray, " L"], bool]:
        """A conversation without `</s>` between its turns, and which positions are answers.

        The final `</s>` and the padding count as answer, so that answers learn to end.

        Returns:
            (ids, label mask: True where a token may be masked, whether it was truncated).
        """
        ids: list[int] = []
        questions: list[int] = []
        for turn in turns:
            pieces = self.pieces(turn.text)
            if not turn.is_answer:
                questions.extend(range(len(ids), len(ids) + len(pieces)))
            ids.extend(pieces)
        label = np.ones(length, np.bool_)
        label[[i for i in questions if i < length - 1]] = False
        row, truncated = self._fit(ids, length)
        return row, label, truncated

    def encode_question(self, questions: Sequence[str], length: int) -> Int32[np.ndarray, "B L"]:
        """Prompts for answering: the question's pieces, no `</s>`, then mask ids to fill in.

        Raises:
            UserError: when a question leaves no room for an answer.
        """
        rows = np.full((len(questions), length), self.mask_id, np.int32)
        for row, question in zip(rows, questions, strict=True):
            pieces = self.pieces(question)
            if len(pieces) >= length:
                raise UserError(
                    f"question {question[:40]!r} has {len(pieces)} tokens and the text length is "
                    f"{length}: shorten it or raise the text length"
                )
            row[: len(pieces)] = pieces
        return rows

    def null_ids(self, length: int) -> Int32[np.ndarray, "1 L"]:
        """The ids of the empty prompt that classifier-free guidance uses (a single space)."""
        return self.encode(" ", length)[0][None]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text up to the first `</s>`; special tokens (padding, masks) are dropped."""
        kept: list[int] = []
        for index in np.asarray(ids).reshape(-1).tolist():
            if index == self.end_id:
                break
            if index != self.mask_id and 0 <= index < self.vocab_size:
                kept.append(index)
        return self._tokenizer.decode(kept, skip_special_tokens=True).strip()

    def decode_batch(self, ids: Int32[np.ndarray, "B L"]) -> list[str]:
        """`decode` for every row."""
        return [self.decode(row) for row in ids]


def check_vocabulary(vocab_size: int) -> None:
    """Raises UserError where `train_tokenizer` could not hold its alphabet."""
    if vocab_size < SMALLEST_VOCABULARY:
        raise UserError(f"vocabulary of {vocab_size}: at least {SMALLEST_VOCABULARY} entries")


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> TextTokenizer:
    """Trains a small byte-pair tokenizer with T5's conventions.

    `<pad>` = 0, `</s>` = 1, `<unk>` = 2 and `<extra_id_0>` last. The vocabulary has exactly
    `vocab_size` entries: where the texts do not need them all, unused ones stand before the
    mask, so that a model's sizes follow from the option alone. Words are split at white space;
    every printable ASCII character is known.

    Raises:
        UserError: when `vocab_size` is below `SMALLEST_VOCABULARY`.
    """
    check_vocabulary(vocab_size)
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        special_tokens=[PAD, END, UNKNOWN],
        initial_alphabet=sorted(_ALPHABET),
        limit_alphabet=vocab_size - 8,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    spare = vocab_size - 1 - tokenizer.get_vocab_size()
    # Never matched in a text: special tokens are not looked for when encoding.
    tokenizer.add_special_tokens([f"<unused_{i}>" for i in range(spare)])
    tokenizer.add_special_tokens([MASK])
    return TextTokenizer(tokenizer)


def word_tokenizer(texts: Iterable[str]) -> TextTokenizer:
    """A tokenizer whose tokens are the words of `texts`, and punctuation marks by themselves.

    For closed worlds: `<pad>` = 0, `</s>` = 1, `<unk>` = 2, then the words in the order in which
    they appear, and `<extra_id_0>` last. Any other word is `<unk>`.
    """
    normalizer = normalizers.NFKC()
    splitter = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Metaspace(),
            pre_tokenizers.Split(tokenizers.Regex(r"[,.:;!?]"), "isolated"),
        ]
    )
    words = dict.fromkeys([PAD, END, UNKNOWN])
    for text in texts:
        pieces = splitter.pre_tokenize_str(normalizer.normalize_str(text))
        words.update(dict.fromkeys(piece for piece, _ in pieces))
    words[MASK] = None
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens([PAD, END, UNKNOWN, MASK])
    return TextTokenizer(tokenizer)
