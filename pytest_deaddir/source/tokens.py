"""Text → token ids, through the checkpoint's own tokenizer: packed into whole sequences, or a sequence for each record."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import nn

from pytest_deaddir.errors import InputsError
from pytest_deaddir.source.load import Model, quiet
from pytest_deaddir.source.records import Record

#: The longest sequence that is fed, in tokens.
LENGTH = 256
#: Characters of a record for each token that is kept of it; what lies behind cannot matter and is not tokenised.
_CHARACTERS = 1000


class Tokens:
    """A model's tokenizer. ``length``: of a sequence, in tokens: what the model, its tokenizer and LENGTH allow.

    Raises :class:`InputsError` where the tokenizer does not load.
    """

    def __init__(self, model: Model) -> None:
        from transformers import AutoTokenizer

        assert model.tokenizer is not None
        with quiet():
            try:
                self._tokenizer = AutoTokenizer.from_pretrained(**model.tokenizer)
            except Exception as error:  # a damaged tokenizer file, a library that it needs …
                path = model.tokenizer["pretrained_model_name_or_path"]
                raise InputsError(f"{path}: its tokenizer does not load: {error}") from error
        longest = self._tokenizer.model_max_length
        if not isinstance(longest, (int, float)) or longest < 4:
            raise InputsError(f"its tokenizer says that {longest!r} tokens are the longest sequence")
        self.length = int(min(sequence_length(model.config), longest))
        self._vocabulary = vocabulary(model)

    def packed(self, text: str) -> torch.Tensor:
        """Sequences of exactly ``length`` tokens, (n, length), each with the special tokens that the tokenizer adds."""
        with quiet():
            if not self._tokenizer.is_fast:
                stream = self._tokenizer(text, add_special_tokens=False)["input_ids"]
                whole = len(stream) // self.length * self.length
                return self._known(torch.tensor(stream[:whole], dtype=torch.long).view(-1, self.length))
            encoded = self._tokenizer(text, truncation=True, max_length=self.length, return_overflowing_tokens=True)[
                "input_ids"
            ]
        rows = [row for row in encoded if len(row) == self.length]
        return self._known(torch.tensor(rows, dtype=torch.long).view(-1, self.length))

    def sequence(self, record: Record) -> dict[str, list[int]]:
        """What the tokenizer makes of a text or of a chat's messages, by argument: at most ``length`` tokens.

        Raises :class:`InputsError` that says which record it is about.
        """
        where, value = record
        chat = not isinstance(value, str)
        text = self._rendered(where, value) if chat else value
        with quiet():
            try:
                # a chat's template writes the special tokens itself
                encoded = self._tokenizer(
                    text[: _CHARACTERS * self.length],
                    add_special_tokens=not chat,
                    truncation=True,
                    max_length=self.length,
                )
            except Exception as error:  # tokenizers have errors of their own
                raise InputsError(f"{where}: cannot be tokenised: {type(error).__name__}: {error}") from error
        return {name: list(values) for name, values in encoded.items() if len(values) == len(encoded["input_ids"])}

    def _rendered(self, where: str, messages: list[dict[str, Any]]) -> str:
        if not getattr(self._tokenizer, "chat_template", None):
            raise InputsError(f"{where}: holds messages, and the tokenizer has no chat template: give it as text")
        try:
            rendered = self._tokenizer.apply_chat_template(messages, tokenize=False)
        except Exception as error:  # a template raises what it likes, and jinja2 may not be installed
            raise InputsError(
                f"{where}: the chat template does not take it: {type(error).__name__}: {error}"
            ) from error
        return str(rendered)

    def padded(self, sequences: Sequence[dict[str, list[int]]], accepted: Collection[str]) -> dict[str, torch.Tensor]:
        """Sequences as one batch (n, longest), padded on the right, with an ``attention_mask`` that is 0 there.

        Beside ``input_ids`` it holds what is ``accepted``; without ``attention_mask`` they must be equally long.
        """
        longest = max(len(sequence["input_ids"]) for sequence in sequences)
        batch = {}
        for name, filler in (("input_ids", self._pad), ("attention_mask", 0), ("token_type_ids", 0)):
            if name in ("input_ids", *accepted) and all(name in sequence for sequence in sequences):
                rows = [sequence[name] + [filler] * (longest - len(sequence[name])) for sequence in sequences]
                batch[name] = torch.tensor(rows, dtype=torch.long)
        lengths = torch.tensor([len(sequence["input_ids"]) for sequence in sequences])
        if "attention_mask" in accepted:  # not every tokenizer makes one
            batch["attention_mask"] = (torch.arange(longest) < lengths[:, None]).long()
        else:
            assert (lengths == longest).all()
        self._known(batch["input_ids"])
        return batch

    @property
    def _pad(self) -> int:
        """The padding token if the model has a row for it, else the end of text, else 0; the mask hides it anyway."""
        candidates = (self._tokenizer.pad_token_id, self._tokenizer.eos_token_id)
        known = [c for c in candidates if isinstance(c, int) and 0 <= c < (self._vocabulary or c + 1)]
        return known[0] if known else 0

    def _known(self, ids: torch.Tensor) -> torch.Tensor:
        require_known(ids, self._vocabulary, "the tokenizer gives")
        return ids


def sequence_length(config: Any) -> int:
    """The longest sequence to feed to a model of this config, at most LENGTH."""
    text = config.get_text_config()
    limits = (getattr(text, name, None) for name in ("max_position_embeddings", "n_positions", "max_seq_len"))
    # RoBERTa's positions start behind the padding id, so two of them cannot be used
    return min(LENGTH, *(limit - 2 for limit in limits if isinstance(limit, int) and limit > 4), LENGTH)


def vocabulary(model: Model) -> int | None:
    """How many token ids the model knows: its config's vocabulary or its embedding's rows, the larger; None if unknown."""
    stated = None if model.config is None else getattr(model.config.get_text_config(), "vocab_size", None)
    if not isinstance(stated, int):
        return None
    try:
        embedding = model.core.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return stated
    return max(stated, embedding.num_embeddings) if isinstance(embedding, nn.Embedding) else stated


def require_known(ids: torch.Tensor, size: int | None, what: str) -> None:
    """Raise :class:`InputsError` for ids outside the vocabulary, which on CUDA would end the process' every later call."""
    if size is not None and ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < size:
        worst = int(ids.max()) if int(ids.max()) >= size else int(ids.min())
        raise InputsError(f"{what} token id {worst}, and the model knows the ids 0 to {size - 1}")
