"""Records of a real tokenizer and a real model: padding is neither seen by the model nor counted."""

import json

import pytest
import torch

from pytest_deaddir import audit
from pytest_deaddir.source.inputs import prepare
from pytest_deaddir.source.load import load
from pytest_deaddir.source.spec import parse_spec


@pytest.fixture
def sentences(tmp_path):
    """Sentences of English prose, of two to some hundred words."""
    from pydoc_data.topics import topics

    prose = " ".join(topics["objects"].split())
    path = tmp_path / "sentences.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in prose.split(". ")[:40]))
    return path


def test_a_padded_batch_holds_the_sequences_that_are_fed_alone(minilm, sentences):
    model = load(parse_spec(str(minilm)))

    def fed(batch_size):
        for batch in prepare(model, sentences, 0, batch_size).batches(10**9):
            for ids, types, mask in zip(
                batch["input_ids"], batch["token_type_ids"], batch["attention_mask"], strict=True
            ):
                assert ids[mask == 0].tolist() == [0] * int((mask == 0).sum())  # [PAD]
                yield ids[mask == 1].tolist(), types[mask == 1].tolist()

    alone, padded = list(fed(1)), list(fed(8))
    assert padded == alone
    assert all(ids[0] == 101 and ids[-1] == 102 for ids, _ in alone)  # [CLS] and [SEP]
    assert len({len(ids) for ids, _ in alone}) > 10


def test_batching_records_changes_no_statistic(minilm, sentences):
    torch.manual_seed(0)
    alone, padded = (audit(minilm, inputs=sentences, samples=400, batch_size=size) for size in (1, 8))
    [one], [other] = ([norm for norm in each.norms if norm["role"] == "final"] for each in (alone, padded))
    assert one["samples"] == other["samples"]
    assert alone.model["inputs_source"] == "own"
    assert other["dead_dimension"] == one["dead_dimension"] == 3
    assert other["bottom_singular_values"][3:] == pytest.approx(one["bottom_singular_values"][3:], rel=1e-3)
    assert other["alignment"] == pytest.approx(one["alignment"], abs=1e-6)
