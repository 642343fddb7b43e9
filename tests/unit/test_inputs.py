"""What a model is fed: every kind of source as it would be fed in use, and every bad one an error that says where."""

import csv
import importlib.util
import itertools
import json
import os
import pickle
import wave
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from pytest_deaddir import audit
from pytest_deaddir.errors import InputsError
from pytest_deaddir.source import records
from pytest_deaddir.source.inputs import BATCH_ROWS, halved, prepare, split
from pytest_deaddir.source.load import load, wrap
from pytest_deaddir.source.processors import stacked
from pytest_deaddir.source.spec import parse_spec
from pytest_deaddir.source.tokens import Tokens

transformers = pytest.importorskip("transformers", reason="needs pytest-deaddir[torch]")
tokenizers = pytest.importorskip("tokenizers", reason="comes with transformers")

WORDS = [f"w{i}" for i in range(60)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
LENGTH = 30  # of GPT-2 with 32 positions
CHAT = "{% for message in messages %}{{ message.role }} {{ message.content }} [SEP] {% endfor %}"

needs_pillow = pytest.mark.skipif(not importlib.util.find_spec("PIL"), reason="Pillow is not installed (group test)")
needs_datasets = pytest.mark.skipif(
    not importlib.util.find_spec("datasets"), reason="datasets is not installed (group test)"
)


def save_tokenizer(folder, *, pad="[PAD]", chat=None, vocabulary=64, brackets=True):
    """A word is a token; ``brackets`` puts [CLS] and [SEP] around a text."""
    words = [*SPECIAL, *WORDS][:vocabulary]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    if brackets:
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="[SEP]", pad_token=pad, model_max_length=1000
    )
    fast.chat_template = chat
    fast.save_pretrained(folder)


def save_gpt2(folder, **tokenizer):
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=1, n_embd=16, n_head=2, vocab_size=64, n_positions=32, bos_token_id=2, eos_token_id=3
    )
    transformers.GPT2Model(config).save_pretrained(folder)
    save_tokenizer(folder, **tokenizer)
    return load(parse_spec(str(folder)))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return save_gpt2(tmp_path_factory.mktemp("gpt2"), chat=CHAT)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    transformers.BertModel(transformers.BertConfig(vocab_size=64, max_position_embeddings=32, **sizes)).save_pretrained(
        folder
    )
    save_tokenizer(folder)
    return load(parse_spec(str(folder)))


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return save_vit(tmp_path_factory.mktemp("vit"))


def save_vit(folder, channels=3):
    pytest.importorskip("PIL", reason="Pillow is not installed (group test)")
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    transformers.ViTModel(
        transformers.ViTConfig(image_size=16, patch_size=4, num_channels=channels, **sizes)
    ).save_pretrained(folder)
    ViTImageProcessorPil(
        size={"height": 16, "width": 16}, image_mean=[0.5] * channels, image_std=[0.5] * channels
    ).save_pretrained(folder)
    return load(parse_spec(str(folder)))


def texts_of(seed, count, longest=25):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, longest))) for _ in range(count)]


def ids_of(text):
    """The tokens of a text, by the definition of the tokenizer above and not by its code."""
    return [2, *(4 + WORDS.index(word) for word in text.split()), 3]


def write_jsonl(path, values):
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


def sequences_of(inputs, rows=10**9):
    """Every sequence that is fed, without its padding."""
    found = []
    for batch in inputs.batches(rows):
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            length = int(mask.sum())
            assert mask.tolist() == [1] * length + [0] * (len(mask) - length)  # on the right
            found.append(ids[:length].tolist())
    return found


# --- records --------------------------------------------------------------------------------------------------------


def test_each_record_is_a_sequence_as_its_tokenizer_makes_it(gpt2, tmp_path):
    texts = texts_of(0, 20)
    inputs = prepare(gpt2, write_jsonl(tmp_path / "a.jsonl", [{"text": t, "id": "x"} for t in texts]), 0)
    assert sequences_of(inputs) == [ids_of(text) for text in texts]
    assert (inputs.name, inputs.source, inputs.open_ended) == ("a.jsonl", "own", False)
    assert not isinstance(inputs.small, tuple)
    gpt2.core(**inputs.small)


def test_a_record_is_cut_where_the_model_ends(gpt2, tmp_path):
    text = " ".join(WORDS)
    [ids] = sequences_of(prepare(gpt2, write_jsonl(tmp_path / "a.jsonl", [text]), 0))
    assert ids == [*ids_of(text)[: LENGTH - 1], 3]


@pytest.mark.parametrize(
    "lines",
    [
        ['{"text": "w1 w2"}'],
        ['"w1 w2"'],
        ['{"label": 3, "sentence": "w1 w2"}'],
        ["", '{"text": "w1 w2", "title": "w5"}', "  "],
        ['\ufeff{"text": "w1 w2"}'],
        ['{"id": 1, "text": "w1 w2"}\r'],
    ],
)
def test_the_field_of_a_record(gpt2, tmp_path, lines):
    path = tmp_path / "a.jsonl"
    path.write_bytes("\n".join(lines).encode())
    assert sequences_of(prepare(gpt2, path, 0)) == [ids_of("w1 w2")]


def test_messages_go_through_the_chat_template(gpt2, tmp_path):
    """And get no special tokens but those of the template."""
    messages = [{"role": "w1", "content": "w2 w3"}, {"role": "w4", "content": "w5"}]
    [ids] = sequences_of(prepare(gpt2, write_jsonl(tmp_path / "a.jsonl", [{"messages": messages}]), 0))
    assert ids == [4 + 1, 4 + 2, 4 + 3, 3, 4 + 4, 4 + 5, 3]


def test_messages_without_a_template_are_an_error(bert, tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"messages": [{"role": "user", "content": "w1"}]}])
    with pytest.raises(InputsError, match=r"a\.jsonl: line 1: .*no chat template"):
        prepare(bert, path, 0)


def test_what_a_template_refuses_names_the_line(tmp_path):
    model = save_gpt2(tmp_path / "m", chat="{{ raise_exception('roles must alternate') }}")
    path = write_jsonl(tmp_path / "a.jsonl", [{"messages": [{"role": "user", "content": "w1"}]}])
    with pytest.raises(InputsError, match=r"a\.jsonl: line 1: the chat template .*roles must alternate"):
        prepare(model, path, 0)


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_padding_changes_nothing_for_the_rows_that_count(name, request, tmp_path):
    """The rows of a padded batch where the mask is 1 are the rows of each record fed by itself."""
    model = request.getfixturevalue(name)
    path = write_jsonl(tmp_path / "a.jsonl", texts_of(1, 12))

    def rows(batch_size):
        found, padding = [], 0
        for batch in prepare(model, path, 0, batch_size).batches(10**9):
            with torch.no_grad():
                hidden = model.core.eval()(**batch).last_hidden_state
            found.append(hidden[batch["attention_mask"] == 1])
            padding += int((batch["attention_mask"] == 0).sum())
        return torch.cat(found), padding

    (alone, none), (together, some) = rows(1), rows(5)
    assert none == 0
    assert some > 0
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_rows_are_counted_without_padding(gpt2, tmp_path):
    lengths = [2 + n for n in (1, 20, 3, 7, 9, 2, 5, 5)]
    path = write_jsonl(tmp_path / "a.jsonl", [" ".join(WORDS[: n - 2]) for n in lengths])
    for rows in (1, 3, 4, 25, 30, sum(lengths) - 1, sum(lengths), 10**6):
        fed = [len(ids) for ids in sequences_of(prepare(gpt2, path, 0, batch_size=3), rows)]
        enough = next((n for n in range(1, 9) if sum(lengths[:n]) >= rows), 8)
        assert fed == lengths[:enough]


def test_no_more_is_read_than_is_wanted(gpt2, tmp_path):
    """So that ten gigabytes cost no more than their beginning: behind it is what cannot be read."""
    path = write_jsonl(tmp_path / "a.jsonl", ["w1 w2 w3"] * 50)
    with path.open("ab") as file:
        file.write(b"\xff{]\n")
    inputs = prepare(gpt2, path, 0, batch_size=4)
    assert len(sequences_of(inputs, 100)) == 20
    with pytest.raises(InputsError, match=r"a\.jsonl: line 51: not UTF-8"):
        sequences_of(inputs)


def test_a_tokenizer_without_a_padding_token_pads_with_its_end(tmp_path):
    model = save_gpt2(tmp_path / "m", pad=None)
    [batch] = prepare(model, write_jsonl(tmp_path / "a.jsonl", ["w1", "w1 w2"]), 0).batches(99)
    assert batch["input_ids"].tolist() == [[2, 5, 3, 3], [2, 5, 6, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]


def test_a_padding_token_that_the_model_does_not_know_is_not_fed(tmp_path):
    """It was added to the tokenizer alone, as is common."""
    model = save_gpt2(tmp_path / "m", pad="[ADDED]")
    batch = next(iter(prepare(model, write_jsonl(tmp_path / "a.jsonl", ["w1", "w1 w2"]), 0).batches(99)))
    assert batch["input_ids"].max() < 64
    model.core(**batch)


def test_empty_texts_are_left_out(tmp_path):
    model = save_gpt2(tmp_path / "m", brackets=False)
    assert sequences_of(prepare(model, write_jsonl(tmp_path / "a.jsonl", ["", "w1", ""]), 0)) == [[5]]
    with pytest.raises(InputsError, match=r"b\.jsonl: no record in it gives a token"):
        prepare(model, write_jsonl(tmp_path / "b.jsonl", ["", ""]), 0)


def test_a_model_that_takes_no_mask_is_not_padded(gpt2, tmp_path):
    class Unmasked(nn.Module):
        def __init__(self, core):
            super().__init__()
            self.config, self.core = core.config, core

        def forward(self, input_ids):
            return self.core(input_ids)

    model = wrap(Unmasked(gpt2.core))
    model.tokenizer = gpt2.tokenizer
    texts = ["w1", "w2", "w1 w2", "w3 w4", "w5"]
    batches = list(prepare(model, write_jsonl(tmp_path / "a.jsonl", texts), 0).batches(99))
    assert all(set(batch) == {"input_ids"} for batch in batches)
    assert [row.tolist() for batch in batches for row in batch["input_ids"]] == [ids_of(text) for text in texts]
    assert [len(batch["input_ids"]) for batch in batches] == [2, 2, 1]


def test_an_encoder_decoder_gets_the_text_twice_with_its_mask(tmp_path):
    config = transformers.BartConfig(
        vocab_size=64, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=32,
        pad_token_id=0, bos_token_id=2, eos_token_id=3, decoder_start_token_id=2, forced_eos_token_id=3,
    )  # fmt: skip
    transformers.BartModel(config).save_pretrained(tmp_path / "m")
    save_tokenizer(tmp_path / "m")
    model = load(parse_spec(str(tmp_path / "m")))
    inputs = prepare(model, write_jsonl(tmp_path / "a.jsonl", ["w1", "w1 w2"]), 0)
    [batch] = inputs.batches(99)
    assert torch.equal(batch["input_ids"], batch["decoder_input_ids"])
    assert torch.equal(batch["attention_mask"], batch["decoder_attention_mask"])
    assert inputs.source == "own"
    model.core(**batch)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no record in it gives a token"),
        (b"\n \n", "no record in it gives a token"),
        (b'"w1"\n\xff\xfe\n', "a.jsonl: line 2: not UTF-8"),
        (b'"w1"\n"w\x002"\n', "a.jsonl: line 2: holds a NUL"),
        (b'"w1"\n{"text": "w2"\n', "a.jsonl: line 2: not JSON"),
        (b"17\n", "a.jsonl: line 1: neither an object nor a string, but int"),
        (b'{"text": 17}\n', "a.jsonl: line 1: its text is not a string, but int"),
        (b'{"text": null, "title": "w1"}\n', "a.jsonl: line 1: its text is not a string, but NoneType"),
        (b'{"a": "w1", "b": "w2"}\n', "a.jsonl: line 1: no field 'text' or 'messages'.*it has 'a', 'b'"),
        (b"{}\n", "a.jsonl: line 1: no field 'text' or 'messages'.*it has nothing"),
        (b'{"messages": []}\n', "a.jsonl: line 1: messages must be a list of objects"),
        (b'{"messages": ["w1"]}\n', "a.jsonl: line 1: messages must be a list of objects"),
        (b'{"text": "\\ud800"}\n', "a.jsonl: line 1: its text is not Unicode"),
        (b"[" * 100_000 + b"\n", "a.jsonl: line 1: not JSON"),
        (b"[" + b"9" * 5000 + b"]\n", "a.jsonl: line 1: not JSON"),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_a_bad_record_names_its_file_and_line(gpt2, tmp_path, content, says):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputsError, match=says):
        prepare(gpt2, path, 0)


def test_a_line_without_end_is_not_read_to_its_end(gpt2, tmp_path, monkeypatch):
    monkeypatch.setattr(records, "LINE_BYTES", 1 << 10)
    path = tmp_path / "a.jsonl"
    path.write_text('"' + "w1 " * 1000)
    with pytest.raises(InputsError, match="line 1: longer than"):
        prepare(gpt2, path, 0)


def test_a_long_record_costs_no_more_than_its_beginning(gpt2):
    """A tokenizer given thirty megabytes to cut them at thirty tokens takes minutes and gigabytes."""
    tokens, seen = Tokens(gpt2), []
    tokenizer = tokens._tokenizer
    tokens._tokenizer = lambda text, **options: seen.append(len(text)) or tokenizer(text, **options)
    assert len(tokens.sequence(("a record", "w1 " * 10_000_000))["input_ids"]) == LENGTH
    assert seen == [1000 * LENGTH]


# --- text -----------------------------------------------------------------------------------------------------------


def test_a_text_is_packed_into_whole_sequences(gpt2, tmp_path, monkeypatch):
    words = np.random.default_rng(0).choice(WORDS, 200).tolist()
    path = tmp_path / "a.txt"
    path.write_text("\n".join(words))
    inputs = prepare(gpt2, path, 0)
    ids = torch.cat([batch["input_ids"] for batch in inputs.batches(10**6)])
    each = LENGTH - 2
    assert ids.tolist() == [ids_of(" ".join(words[i : i + each])) for i in range(0, 200 - each, each)]
    assert (inputs.name, inputs.source) == ("a.txt", "own")

    monkeypatch.setattr(records, "BLOCK", 300)  # and of a text of many blocks, no more of them than are wanted
    with path.open("ab") as file:
        file.write(b" " * 20_000 + b"\xff")
    blocks = prepare(gpt2, path, 0)
    assert sum(batch["input_ids"].numel() for batch in blocks.batches(4 * LENGTH)) == 4 * LENGTH
    with pytest.raises(InputsError, match=r"a\.txt: cannot be read as UTF-8"):
        list(blocks.batches(10**6))


def test_without_inputs_it_is_the_documentation_of_python(bert):
    inputs = prepare(bert, None, 0)
    assert (inputs.name, inputs.source) == ("pydoc_data.topics", "own")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "a.txt: the text gives no whole sequence"),
        (b"w1 w2", "a.txt: the text gives no whole sequence"),
        (b"w1 \xe9", "a.txt: cannot be read as UTF-8 text"),
        (b"w1\x00w2", "a.txt: holds a NUL"),
    ],
)
def test_a_bad_text_is_an_error(gpt2, tmp_path, content, says):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(InputsError, match=says):
        prepare(gpt2, path, 0)


def test_a_tokenizer_of_another_model_is_an_error(tmp_path):
    """Its ids are beyond the embedding. On a GPU that would end in a device-side assertion."""
    save_tokenizer(tmp_path / "t")
    config = transformers.GPT2Config(
        n_layer=1, n_embd=16, n_head=2, vocab_size=20, n_positions=32, bos_token_id=2, eos_token_id=3
    )
    transformers.GPT2Model(config).save_pretrained(tmp_path / "t")
    model = load(parse_spec(str(tmp_path / "t")))
    with pytest.raises(InputsError, match=r"token id 63, and the model knows the ids 0 to 19"):
        prepare(model, write_jsonl(tmp_path / "a.jsonl", ["w1 w59"]), 0)


def test_a_model_without_a_tokenizer_reads_no_text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("w1")
    with pytest.raises(InputsError, match=r"a\.txt: the model has no tokenizer"):
        prepare(wrap(nn.LayerNorm(4)), path, 0)


# --- paths ----------------------------------------------------------------------------------------------------------


def test_what_is_no_path_of_inputs_is_an_error(gpt2, tmp_path):
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    fifo = tmp_path / "fifo.jsonl"
    os.mkfifo(fifo)
    for path in (loop, fifo, tmp_path / "nothing", tmp_path / "a\0b", tmp_path / ("x" * 5000)):
        with pytest.raises(InputsError, match=r"no such file or folder|cannot be a path"):
            prepare(gpt2, path, 0)


def test_a_folder_with_nothing_to_feed_says_what_could_be_fed(gpt2, tmp_path):
    (tmp_path / "around").symlink_to(tmp_path)  # a walk that follows it never ends
    (tmp_path / ".hidden").mkdir()
    write_jsonl(tmp_path / ".hidden" / "a.jsonl", ["w1"])
    (tmp_path / "script.py").write_text("raise SystemExit")
    with pytest.raises(InputsError, match=r"nothing in this folder can be fed: .*\.parquet.*\.png.*\.wav"):
        prepare(gpt2, tmp_path, 0)


def test_the_files_of_a_folder_are_read_in_sorted_order(gpt2, tmp_path):
    for name, word in (("b", "w2"), ("c/a", "w3"), ("a", "w1")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_jsonl(tmp_path / f"{name}.jsonl", [word])
    write_jsonl(tmp_path / "dataset_info.json", ["w9"])
    assert sequences_of(prepare(gpt2, tmp_path, 0)) == [ids_of("w1"), ids_of("w2"), ids_of("w3")]


def test_a_folder_that_the_model_cannot_be_fed_with_says_why(gpt2, vit, tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(InputsError, match="the model takes no images"):
        prepare(gpt2, tmp_path, 0)
    (tmp_path / "a.wav").write_bytes(b"")
    with pytest.raises(InputsError, match="the model takes no sounds"):
        prepare(vit, tmp_path / "a.wav", 0)


# --- tables ---------------------------------------------------------------------------------------------------------


def everything_below(folder):
    return sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*"))


@pytest.fixture
def datasets(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
    return pytest.importorskip("datasets", reason="datasets is not installed (group test)")


@needs_datasets
@pytest.mark.parametrize("form", ["disk", "splits", "parquet", "csv", "json", "jsonl", "arrow"])
def test_what_datasets_writes_is_read(gpt2, tmp_path, datasets, form):
    texts = texts_of(2, 150)
    made = datasets.Dataset.from_dict({"id": list(range(150)), "text": texts, "title": ["w9"] * 150})
    folder = tmp_path / "data"
    folder.mkdir()
    match form:
        case "disk":
            made.save_to_disk(folder, num_shards=3)
            (folder / "cache-1234.arrow").write_bytes(b"of a map")
        case "splits":
            halves = {"test": made.select(range(70)), "train": made.select(range(70, 150))}
            datasets.DatasetDict(halves).save_to_disk(folder)
        case "parquet":
            made.to_parquet(folder / "a.parquet")
        case "csv":
            made.to_csv(folder / "a.csv")
        case "json":
            made.to_json(folder / "a.json", lines=False)
        case "jsonl":
            made.to_json(folder / "a.jsonl")
        case "arrow":
            import pyarrow.feather

            pyarrow.feather.write_feather(made.data.table, folder / "a.arrow")
    (folder / "data.py").write_text("raise SystemExit('a dataset script')")
    before = everything_below(tmp_path)
    assert sequences_of(prepare(gpt2, folder, 0)) == [ids_of(text) for text in texts]
    assert everything_below(tmp_path) == before


@needs_datasets
def test_a_table_of_chats_goes_through_the_template(gpt2, tmp_path, datasets):
    chats = [[{"role": "w1", "content": "w2"}], [{"role": "w3", "content": "w4"}, {"role": "w1", "content": "w5"}]]
    datasets.Dataset.from_dict({"messages": chats, "title": ["x", "y"]}).to_parquet(tmp_path / "a.parquet")
    assert sequences_of(prepare(gpt2, tmp_path / "a.parquet", 0)) == [[5, 6, 3], [7, 8, 3, 5, 9, 3]]


@needs_datasets
@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"a": ["w1"], "b": ["w2"]}, r"a\.parquet: no field 'text' or 'messages'.*it has 'a', 'b'"),
        ({"a": [1]}, r"a\.parquet: no field 'text' or 'messages'"),
        ({"text": ["w1", None]}, r"a\.parquet: row 1: its text is not a string"),
        ({"text": [1]}, r"a\.parquet: row 0: its text is not a string, but int"),
    ],
)
def test_a_table_without_one_text_is_an_error(gpt2, tmp_path, datasets, columns, says):
    datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(InputsError, match=says):
        prepare(gpt2, tmp_path, 0)


@needs_datasets
@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_damaged_table_names_its_file(gpt2, tmp_path, datasets, name):
    made = datasets.Dataset.from_dict({"text": texts_of(3, 500)})
    if name == "a.parquet":
        made.to_parquet(tmp_path / name)
    else:
        made.save_to_disk(tmp_path / "d")
        (tmp_path / "d" / "data-00000-of-00001.arrow").rename(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    for damaged in (b"", b"ARROW1", b"PAR1", whole[:1000], whole[500:], b"\xff" * 100):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(InputsError, match=f"{name}: "):
            sequences_of(prepare(gpt2, tmp_path / name, 0))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("a,b\nw1,w2\n", r"a\.csv: no field 'text'.*it has 'a', 'b'"),
        ("", r"a\.csv: no field 'text'"),
        ("id,text\n1,w1\n2\n", r"a\.csv: line 3: has 1 of 2 columns"),
        ("text\n" + "w1 " * 100_000, r"a\.csv: line 2: field larger than field limit"),
    ],
)
def test_a_bad_csv_names_its_line(gpt2, tmp_path, content, says):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(InputsError, match=says):
        prepare(gpt2, tmp_path / "a.csv", 0)


def test_a_field_of_a_csv_may_have_lines_of_its_own(gpt2, tmp_path):
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "text"], [1, 'w1\nw2 "w3"'], [2, "w4"]])
    assert len(sequences_of(prepare(gpt2, tmp_path / "a.csv", 0))) == 2


@pytest.mark.parametrize("content", ["[1, 2]", "[", '["w1"', '{"text": 1}'])
def test_a_bad_json_names_its_file(gpt2, tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InputsError, match=r"a\.json"):
        prepare(gpt2, tmp_path / "a.json", 0)


def test_without_pyarrow_a_table_says_what_to_install(gpt2, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(InputsError, match=r"need pyarrow.*pip install 'pytest-deaddir\[inputs\]'"):
        prepare(gpt2, tmp_path, 0)


# --- images ---------------------------------------------------------------------------------------------------------


def pixels(seed, height=20, width=24):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save_images(folder, count=5):
    from PIL import Image

    folder.mkdir(exist_ok=True)
    for index in reversed(range(count)):
        Image.fromarray(pixels(index)).save(folder / f"{index}.png")
    return folder


def prepared_by_hand(array):
    """Resized to 16 × 16 and brought to [-1, 1], as the processor's configuration says."""
    from PIL import Image

    resized = np.asarray(Image.fromarray(array).resize((16, 16), Image.Resampling.BILINEAR), dtype=np.float64)
    return torch.tensor((resized / 255 - 0.5) / 0.5).permute(2, 0, 1).float()


@needs_pillow
def test_images_are_fed_in_sorted_order_as_their_processor_makes_them(vit, tmp_path):
    inputs = prepare(vit, save_images(tmp_path / "photos"), 0, batch_size=2)
    batches = list(inputs.batches(1))
    assert [len(batch["pixel_values"]) for batch in batches] == [2, 2, 1]
    expected = torch.stack([prepared_by_hand(pixels(index)) for index in range(5)])
    torch.testing.assert_close(torch.cat([batch["pixel_values"] for batch in batches]), expected, atol=1e-5, rtol=0)
    assert (inputs.name, inputs.source, inputs.open_ended) == ("photos", "own", True)


@needs_pillow
def test_an_audit_takes_no_more_images_than_it_needs(vit, tmp_path):
    """An image is 17 rows here, and 64 are wanted: the third batch of two is the last, and the broken one behind waits."""
    folder = save_images(tmp_path / "photos", 6)
    (folder / "7.png").write_bytes(b"no image")
    model = str(vit.processor["pretrained_model_name_or_path"])
    audited = audit(model, inputs=folder, batch_size=2)
    assert audited.model["samples"] == 4 * 17
    assert (audited.model["inputs"], audited.model["inputs_source"]) == ("photos", "own")
    with pytest.raises(InputsError, match=r"7\.png: cannot be read as an image"):
        audit(model, inputs=folder, samples=1000)


@needs_pillow
def test_one_image_is_a_source_too(vit, tmp_path):
    folder = save_images(tmp_path / "photos", 1)
    [batch] = prepare(vit, folder / "0.png", 0).batches(1)
    assert batch["pixel_values"].shape == (1, 3, 16, 16)


@needs_pillow
def test_a_photograph_is_turned_upright(vit, tmp_path):
    from PIL import Image

    image = Image.fromarray(pixels(0))
    exif = image.getexif()
    exif[0x0112] = 6  # turn by 90° clockwise
    image.save(tmp_path / "a.png", exif=exif)
    [batch] = prepare(vit, tmp_path / "a.png", 0).batches(1)
    expected = prepared_by_hand(np.rot90(pixels(0), -1).copy())
    torch.testing.assert_close(batch["pixel_values"][0], expected, atol=1e-5, rtol=0)


@needs_pillow
def test_a_model_of_one_channel_gets_one(tmp_path):
    model = save_vit(tmp_path / "m", channels=1)
    [batch] = prepare(model, save_images(tmp_path / "photos", 2), 0).batches(1)
    assert batch["pixel_values"].shape == (2, 1, 16, 16)
    model.core(**batch)


@needs_pillow
def test_a_bad_image_is_an_error_that_names_it(vit, tmp_path, monkeypatch):
    from PIL import Image

    whole = (save_images(tmp_path / "photos", 1) / "0.png").read_bytes()
    bad = {
        "empty.png": b"",
        "cut.png": whole[: len(whole) // 2],
        "text.jpg": b"not an image",
        "script.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",  # Pillow would start Ghostscript
    }
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
        why = "OSError: .*truncated" if name == "cut.png" else "UnidentifiedImageError"
        with pytest.raises(InputsError, match=f"{name}: cannot be read as an image: {why}"):
            prepare(vit, tmp_path / name, 0)
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputsError, match=r"gone\.png: cannot be read"):
        prepare(vit, _only(tmp_path, "gone.png"), 0)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    with pytest.raises(InputsError, match=r"0\.png: .*DecompressionBombWarning"):
        prepare(vit, tmp_path / "photos", 0)


def _only(folder, name):
    alone = folder / "alone"
    alone.mkdir()
    (folder / name).rename(alone / name)
    return alone


@needs_pillow
@needs_datasets
def test_the_images_of_a_table_are_those_of_its_files(vit, tmp_path, datasets):
    folder = save_images(tmp_path / "photos", 3)
    paths = sorted(map(str, folder.iterdir()))
    made = datasets.Dataset.from_dict({"picture": paths, "label": [0, 1, 2]})
    made = made.cast_column("picture", datasets.Image())
    made.save_to_disk(tmp_path / "saved")
    ours = torch.cat([batch["pixel_values"] for batch in prepare(vit, tmp_path / "saved", 0).batches(1)])
    theirs = torch.cat([batch["pixel_values"] for batch in prepare(vit, folder, 0).batches(1)])
    assert torch.equal(ours, theirs)

    import pyarrow
    import pyarrow.parquet

    elsewhere = pyarrow.table({"image": [{"bytes": None, "path": paths[0]}]})
    pyarrow.parquet.write_table(elsewhere, tmp_path / "paths.parquet")
    with pytest.raises(InputsError, match=r"paths\.parquet: row 0: its image is not in the file"):
        prepare(vit, tmp_path / "paths.parquet", 0)


@needs_pillow
def test_what_is_made_up_beside_images_makes_them_synthetic(tmp_path):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config={**sizes, "vocab_size": 64, "bos_token_id": 2, "eos_token_id": 3, "max_position_embeddings": 32},
        vision_config={**sizes, "image_size": 16, "patch_size": 4},
        projection_dim=8,
    )
    transformers.CLIPModel(config).save_pretrained(tmp_path / "m")
    CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(
        tmp_path / "m"
    )
    model = load(parse_spec(str(tmp_path / "m")))
    inputs = prepare(model, save_images(tmp_path / "photos", 3), 0)
    [batch] = inputs.batches(1)
    assert inputs.source == "synthetic"
    assert len(batch["pixel_values"]) == len(batch["input_ids"]) == 3
    model.core(**batch)


def test_a_model_without_a_processor_says_so(vit, tmp_path):
    model = wrap(vit.module)
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(InputsError, match=r"no processor \(preprocessor_config\.json\) for images"):
        prepare(model, tmp_path / "a.png", 0)


def test_a_damaged_processor_names_its_folder(tmp_path):
    save_vit(tmp_path / "m")
    (tmp_path / "m" / "preprocessor_config.json").write_text('{"image_processor_type": "NoSuchProcessor"}')
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(InputsError, match=r"m: its processor does not load"):
        prepare(load(parse_spec(str(tmp_path / "m"))), tmp_path / "a.png", 0)


def test_without_pillow_an_image_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(InputsError, match=r"images need Pillow.*pip install 'pytest-deaddir\[inputs\]'"):
        list(records.images([tmp_path / "a.png"], "RGB"))


def test_only_neighbours_of_one_shape_go_together():
    shapes = [(1, 3, 8, 8), (1, 3, 8, 8), (1, 3, 4, 8), (1, 3, 8, 8), (1, 3, 8, 8), (1, 3, 8, 8)]
    made = [
        {"pixel_values": torch.full(shape, float(i)), "size": torch.tensor([[i]])} for i, shape in enumerate(shapes)
    ]
    batches = list(stacked(iter(made), 2))
    assert [count for _, count in batches] == [2, 1, 2, 1]
    assert [batch["size"].flatten().tolist() for batch, _ in batches] == [[0, 1], [2], [3, 4], [5]]


# --- sounds ---------------------------------------------------------------------------------------------------------


def write_wav(path, samples, *, width=2, rate=16000, channels=1):
    """``samples``: whole numbers that fit into 8 bits, written with as many as the width asks for."""
    scale = 1 << (8 * (width - 1))
    values = np.asarray(samples, dtype=np.int64) * scale + (128 if width == 1 else 0)
    data = b"".join(int(value).to_bytes(width, "little", signed=width > 1) for value in values)
    with wave.open(str(path), "wb") as sound:
        sound.setnchannels(channels)
        sound.setsampwidth(width)
        sound.setframerate(rate)
        sound.writeframes(data)
    return path


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_a_sound_is_the_same_in_every_width(tmp_path, width):
    samples = [0, 64, -64, 127, -128, 1]
    path = write_wav(tmp_path / "a.wav", samples, width=width)
    [(_, heard)] = records.sounds([path], 16000)
    assert heard.dtype == np.float32
    assert heard.tolist() == [sample / 128 for sample in samples]


def test_a_sound_of_two_channels_is_their_mean(tmp_path):
    path = write_wav(tmp_path / "a.wav", [10, 20, -30, 30], channels=2)
    [(_, heard)] = records.sounds([path], 16000)
    assert heard.tolist() == [15 / 128, 0]


def test_a_long_sound_comes_in_pieces(tmp_path):
    path = write_wav(tmp_path / "a.wav", np.arange(100 * 60 + 50) % 100, rate=100)
    pieces = list(records.sounds([path], 100))
    assert [len(heard) for _, heard in pieces] == [3000, 3000]  # and half a second is left out
    assert np.concatenate([heard for _, heard in pieces]).tolist() == [i % 100 / 128 for i in range(6000)]


@pytest.mark.parametrize(
    ("content", "says"), [(b"", "cannot be read"), (b"RIFF", "cannot be read"), (b"no sound" * 9, "cannot be read")]
)
def test_a_bad_sound_names_its_file(tmp_path, content, says):
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(InputsError, match=rf"a\.wav: {says}"):
        list(records.sounds([tmp_path / "a.wav"], 16000))


def test_a_sound_that_does_not_fit_names_its_file(tmp_path):
    path = write_wav(tmp_path / "a.wav", [1] * 100)
    with pytest.raises(InputsError, match=r"a\.wav: 16000 samples a second, and the model takes 8000"):
        list(records.sounds([path], 8000))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputsError, match=r"a\.wav: truncated"):
        list(records.sounds([path], 16000))
    with pytest.raises(InputsError, match=r"b\.wav: holds no sound"):
        list(records.sounds([write_wav(tmp_path / "b.wav", [])], 16000))


def test_sounds_go_through_the_feature_extractor(tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.Wav2Vec2Config(
        conv_dim=[8, 8], conv_stride=[5, 4], conv_kernel=[10, 4], num_feat_extract_layers=2,
        num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, **sizes,
    )  # fmt: skip
    transformers.Wav2Vec2Model(config).save_pretrained(tmp_path / "m")
    transformers.Wav2Vec2FeatureExtractor(sampling_rate=8000, return_attention_mask=True).save_pretrained(
        tmp_path / "m"
    )
    samples = np.random.default_rng(0).integers(-128, 128, 4000)
    for name in ("b", "a"):
        write_wav(tmp_path / f"{name}.wav", samples, rate=8000)
    model = load(parse_spec(str(tmp_path / "m")))
    inputs = prepare(model, tmp_path / "a.wav", 0)
    [batch] = inputs.batches(1)
    assert set(batch) == {"input_values"}  # a mask over samples says nothing about rows
    heard = torch.tensor(samples / 128).float()
    torch.testing.assert_close(
        batch["input_values"][0], (heard - heard.mean()) / (heard.var(unbiased=False) + 1e-7).sqrt(), atol=1e-4, rtol=0
    )
    assert inputs.source == "own"
    assert audit(str(tmp_path / "m"), inputs=tmp_path / "a.wav").model["samples"] == 199


# --- arrays ---------------------------------------------------------------------------------------------------------


def test_arrays_are_given_as_they_are(gpt2, tmp_path):
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 64, (50, 7), dtype=np.int16)
    mask = np.ones((50, 7), dtype=np.uint8)
    mask[:, 5:] = 0
    path = tmp_path / "a.npz"
    np.savez(path, input_ids=ids, attention_mask=mask)
    inputs = prepare(gpt2, path, 0, batch_size=20)
    batches = list(inputs.batches(1))  # all of them are fed, whatever is wanted
    assert [len(batch["input_ids"]) for batch in batches] == [20, 20, 10]
    assert np.array_equal(torch.cat([batch["input_ids"] for batch in batches]).numpy(), ids)
    assert np.array_equal(torch.cat([batch["attention_mask"] for batch in batches]).numpy(), mask)
    assert batches[0]["input_ids"].dtype == batches[0]["attention_mask"].dtype == torch.int64
    assert (inputs.name, inputs.source) == ("a.npz", "own")


def test_embeddings_run_in_the_models_dtype(gpt2, tmp_path):
    embeds = np.random.default_rng(0).standard_normal((8, 12, 16))
    np.savez_compressed(tmp_path / "a.npz", inputs_embeds=embeds)
    audited = audit(gpt2.module, inputs=tmp_path / "a.npz", dtype="bfloat16")
    assert audited.model["samples"] == 96
    assert audited.model["dtype"] == "bfloat16"


def test_arrays_feed_any_module(tmp_path):
    torch.manual_seed(0)
    np.savez(tmp_path / "a.npz", input=np.random.default_rng(0).standard_normal((99, 16)))
    audited = audit(nn.LayerNorm(16), inputs=str(tmp_path / "a.npz"))
    assert audited.model["samples"] == 99


def members(**arrays):
    return lambda path: np.savez(path, **arrays)


def pickled(path):
    array = np.empty(1, dtype=object)
    array[0] = {"code": "that would run"}
    np.savez(path, input_ids=array)


def not_an_array(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("input_ids", b"text")


def lying(path):
    np.savez(path, input_ids=np.zeros((4, 4), dtype=np.int64))
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"(4, 4)", b"(4, 9)"))


IDS = np.zeros((4, 6), dtype=np.int64)


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (members(input_idz=IDS), "no argument 'input_idz'; did you mean input_ids"),
        (members(zzzz=IDS), "no argument 'zzzz': it takes input_ids, "),
        (members(input_ids=IDS, attention_mask=IDS[:3]), "first axis must be the same.*attention_mask \\(3, 6\\)"),
        (members(input_ids=IDS + 64), "input_ids holds token id 64, and the model knows the ids 0 to 63"),
        (members(input_ids=IDS - 1), "input_ids holds token id -1"),
        (members(input_ids=IDS[:, :0]), "holds an empty array"),
        (members(inputs_embeds=IDS.astype(complex)), "complex128 is no dtype"),
        (members(input_ids=IDS.astype("U1")), "<U1 is no dtype"),
        (members(input_ids=np.full((2, 2), 2**63, dtype=np.uint64)), "uint64 is no dtype"),
        (members(), "holds no arrays"),
        (pickled, "cannot be read as .npz.*pickle"),
        (not_an_array, "input_ids: not an array"),
        (lying, "cannot be read as .npz"),
        (lambda path: path.write_bytes(b""), "cannot be read as .npz"),
        (lambda path: path.write_bytes(pickle.dumps(IDS)), "cannot be read as .npz"),
    ],
    ids=itertools.count(),
)
def test_bad_arrays_are_an_error(gpt2, tmp_path, write, says):
    path = tmp_path / "a.npz"
    write(path)
    with pytest.raises(InputsError, match=rf"a\.npz.*{says}"):
        prepare(gpt2, path, 0)


def test_an_argument_that_the_forward_must_have_is_missed(tmp_path):
    class Two(nn.Module):
        def forward(self, x, y, z=None):
            return x + y

    np.savez(tmp_path / "a.npz", x=np.ones((3, 4)))
    with pytest.raises(InputsError, match=r"a\.npz: lacks y, which the forward of Two must have"):
        prepare(wrap(Two()), tmp_path / "a.npz", 0)


def test_a_bomb_of_arrays_is_not_unpacked(gpt2, tmp_path, monkeypatch):
    monkeypatch.setattr(records, "ARRAY_BYTES", 1 << 20)
    np.savez_compressed(tmp_path / "a.npz", input_ids=np.zeros((1 << 10, 1 << 8), dtype=np.int64))
    with pytest.raises(InputsError, match=r"a\.npz: .*are not read"):
        prepare(gpt2, tmp_path / "a.npz", 0)


# --- batches --------------------------------------------------------------------------------------------------------


def test_a_batch_in_two_halves():
    batch = {
        "input_ids": torch.arange(15).view(5, 3),
        "attention_mask": torch.ones(5, 3),
        "position_ids": torch.arange(3)[None],
        "scale": torch.tensor(2.0),
        "use_cache": False,
        "labels": None,
    }
    first, second = halved(batch)
    assert (len(first["input_ids"]), len(second["input_ids"])) == (3, 2)
    for name in ("input_ids", "attention_mask"):
        assert torch.equal(torch.cat([first[name], second[name]]), batch[name])
    for name in ("position_ids", "scale", "use_cache", "labels"):
        assert first[name] is second[name] is batch[name]


def test_positional_arguments_in_two_halves():
    x, y = torch.arange(8).view(4, 2), torch.arange(4)
    first, second = halved((x, y, 3))
    assert torch.equal(torch.cat([first[0], second[0]]), x)
    assert torch.equal(torch.cat([first[1], second[1]]), y)
    assert first[2] == second[2] == 3


@pytest.mark.parametrize(
    "batch",
    [
        {"input_ids": torch.ones(1, 9)},
        {"input_ids": torch.ones(1, 9), "segments": torch.ones(4, 2)},
        {"pixel_values": torch.ones(8, 9), "image_grid_thw": torch.ones(1, 3)},
        {"pixel_values": torch.ones(8, 9), "image_grid_thw": torch.ones(8, 3)},
        {"x": torch.ones(4, 9), "y": torch.ones(3, 9)},
        {"input_ids": torch.ones(4, 9), "past": [torch.ones(4, 2)]},
        {"flag": True},
        (),
    ],
)
def test_what_cannot_be_halved_is_not(batch):
    assert halved(batch) is None


def test_parts_have_at_most_the_size_asked_for():
    x = torch.arange(10).view(5, 2)
    assert [part[0].tolist() for part in split((x,), 2)] == [x[:2].tolist(), x[2:4].tolist(), x[4:].tolist()]


@pytest.mark.parametrize("size", [1, 3])
def test_the_batch_size_is_that_of_every_source(gpt2, tmp_path, size):
    text = tmp_path / "a.txt"
    text.write_text("w1 " * 1000)
    sources = [text, write_jsonl(tmp_path / "a.jsonl", texts_of(4, 30)), None]
    for given in sources:
        fed = [len(batch["input_ids"]) for batch in prepare(gpt2, given, 0, size).batches(150)]
        assert set(fed[:-1]) == {size}
        assert fed[-1] <= size
    made_up = prepare(wrap(gpt2.module), None, 0, size)
    assert len(next(iter(made_up.batches(1000)))["input_ids"]) == size
    given = prepare(gpt2, {"input_ids": torch.ones(7, 5, dtype=torch.long)}, 0, size)
    assert [len(batch["input_ids"]) for batch in given.batches(1)] == ([3, 3, 1] if size == 3 else [1] * 7)


def test_by_default_a_batch_is_about_so_many_rows(gpt2, tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", texts_of(5, 200))
    assert len(next(iter(prepare(gpt2, path, 0).batches(10**6)))["input_ids"]) == BATCH_ROWS // LENGTH
    given = {"input_ids": torch.ones(700, 5, dtype=torch.long)}
    assert prepare(gpt2, given, 0).batches(1) == [given]  # ready arguments are as they are


def test_the_batch_size_changes_no_figure(bert):
    first, second = (
        audit(bert.module, inputs={"input_ids": torch.arange(600).view(24, 25) % 64}, batch_size=size)
        for size in (24, 5)
    )
    [one], [other] = ([norm for norm in audited.norms if norm["role"] == "final"] for audited in (first, second))
    assert one["samples"] == other["samples"] == 600
    assert one["bottom_singular_values"][1:] == pytest.approx(other["bottom_singular_values"][1:], rel=1e-3)


def test_a_batch_of_none_is_refused(gpt2):
    with pytest.raises(InputsError, match="batch_size is 0"):
        prepare(gpt2, None, 0, 0)


def test_too_small_a_source_says_how_many_rows_it_has(gpt2, tmp_path):
    path = write_jsonl(tmp_path / "few.jsonl", ["w1 w2"])
    folder = str(gpt2.tokenizer["pretrained_model_name_or_path"])
    with pytest.raises(
        InputsError, match=r"N = 4 rows for width d = 16; at least 17 are needed.*few\.jsonl gives no more"
    ):
        audit(folder, inputs=path)
