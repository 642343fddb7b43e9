"""Train the two tiny example checkpoints, tiny-gpt2 (LayerNorm) and tiny-llama (RMSNorm).

    python examples/train_tiny.py [gpt2|llama|all] [--out DIR] [--steps N]

The text is the English language reference that every CPython carries in `pydoc_data.topics`, so nothing
is downloaded. Each model gets its own directory, with the byte-level BPE tokenizer trained here and a
README.md that records the run. It takes a few minutes a model on two cores.

Needs torch, transformers and tokenizers. One seed and one thread count give the same bytes on the same
machine; another Python carries another edition of the text, so it gives another model.
"""

import argparse
import json
import math
import platform
import time
from pathlib import Path
from pydoc_data.topics import topics

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    get_cosine_schedule_with_warmup,
)

SEED = 20
THREADS = 2  # fixed, because sums split over another number of threads round differently
VOCAB, CONTEXT, WIDTH, LAYERS, HEADS = 1024, 256, 128, 3, 4
BATCH, STEPS, LEARNING_RATE, WEIGHT_DECAY = 16, 600, 3e-3, 0.1
END = "<|endoftext|>"


def documents() -> list[str]:
    """Return the topics as texts in which no paragraph occurs twice.

    Topics repeat whole sections of one another; left in, they would put training text in the held-out part.
    """
    seen: set[str] = set()
    texts = []
    for name in sorted(topics):
        fresh = []
        for paragraph in topics[name].split("\n\n"):
            if paragraph not in seen:
                seen.add(paragraph)
                fresh.append(paragraph)
        if fresh:
            texts.append("\n\n".join(fresh))
    return texts


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Train a byte-level BPE tokenizer, in which END has id 0."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCAB,
            special_tokens=[END],
            # Sorted, because the order of this list sets the ids and comes from a hash map.
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    return tokenizer


def split(tokenizer: Tokenizer, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode the texts; return the training stream and the held-out windows, which are 5 % of the tokens."""
    ids = torch.tensor(tokenizer.encode(END.join(texts)).ids)
    windows = list(ids.split(CONTEXT))
    held_out = windows[10:-1:20]  # evenly spread over the topics; the last window may be short
    del windows[10:-1:20]
    return torch.cat(windows), torch.stack(held_out)


def unigram_loss(train: torch.Tensor, held_out: torch.Tensor) -> float:
    """Return the held-out loss of a model that knows only how often each token occurs."""
    counts = torch.bincount(train, minlength=VOCAB).double() + 1
    return -(counts / counts.sum()).log()[held_out[:, 1:]].mean().item()


def build(name: str) -> PreTrainedModel:
    """Return the untrained model; both have tied embeddings and about 0.6 million parameters."""
    common = {
        "vocab_size": VOCAB,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    if name == "gpt2":
        config = GPT2Config(
            n_positions=CONTEXT, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, n_inner=3 * WIDTH, **common
        )
        return GPT2LMHeadModel(config)
    config = LlamaConfig(
        max_position_embeddings=CONTEXT,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=2 * WIDTH,
        **common,
    )
    return LlamaForCausalLM(config)


def loss_on(model: PreTrainedModel, batch: torch.Tensor) -> torch.Tensor:
    """Return the mean loss, in nats per token, of predicting each token of a window but the first."""
    logits = model(input_ids=batch).logits[:, :-1]
    return cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


@torch.no_grad()
def evaluate(model: PreTrainedModel, held_out: torch.Tensor) -> float:
    """Return the held-out loss, with dropout off."""
    model.eval()
    loss = loss_on(model, held_out).item()
    model.train()
    return loss


def train_model(model: PreTrainedModel, stream: torch.Tensor, held_out: torch.Tensor, steps: int) -> float:
    """Train the model in place; return its final held-out loss."""
    # Matrices decay, norm scales and biases do not: a decaying scale would drift to zero on its own.
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}],
        lr=LEARNING_RATE,
        betas=(0.9, 0.95),
        weight_decay=WEIGHT_DECAY,
    )
    schedule = get_cosine_schedule_with_warmup(optimizer, min(50, steps // 2), steps)
    offsets = torch.arange(CONTEXT)

    model.train()
    for step in range(1, steps + 1):
        starts = torch.randint(len(stream) - CONTEXT + 1, (BATCH, 1))
        batch = stream[starts + offsets]
        loss = loss_on(model, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps:
            validation = evaluate(model, held_out)
            print(f"step {step:5d}  train {loss.item():.4f}  validation {validation:.4f}", flush=True)
    return validation


def save_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """Write the tokenizer files by hand: what transformers would write depends on its major version."""
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END,
        "eos_token": END,
        "pad_token": END,
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


CARD = """\
---
language: en
library_name: transformers
pipeline_tag: text-generation
---

# tiny-{name}

A `{architecture}` trained from scratch as an example to audit. It is too small to be of other use.

| | |
|---|---|
| Norms | {norms} |
| Parameters | {parameters:,} (float32, tied embeddings) |
| Data | `pydoc_data.topics` of CPython {python}, without repeats: {tokens:,} tokens, 5 % held out |
| Seed | {seed} |
| Steps | {steps} of {batch} x {context} tokens |
| Final validation loss | {validation:.4f} nats per token (unigram baseline {baseline:.4f}) |

The text is the Python language reference, by the Python Software Foundation, under the PSF License.

To regenerate it: `python examples/train_tiny.py {name}{options}`
"""


def make(name: str, out: Path, steps: int) -> None:
    """Train one model and write its directory."""
    directory = out / f"tiny-{name}"
    directory.mkdir(parents=True, exist_ok=True)  # first, so that a bad path fails before the training
    torch.manual_seed(SEED)  # here, so that a model comes out the same whether or not another came before
    began = time.perf_counter()

    texts = documents()
    tokenizer = train_tokenizer(texts)
    stream, held_out = split(tokenizer, texts)
    baseline = unigram_loss(stream, held_out)
    model = build(name)
    parameters = model.num_parameters()
    print(f"tiny-{name}: {parameters:,} parameters, {len(stream):,} training tokens")
    print(f"uniform {math.log(VOCAB):.4f}  unigram baseline {baseline:.4f}", flush=True)

    validation = train_model(model, stream, held_out, steps)

    model.save_pretrained(directory)
    save_tokenizer(tokenizer, directory)
    card = CARD.format(
        name=name,
        architecture=type(model).__name__,
        norms="LayerNorm" if name == "gpt2" else "RMSNorm",
        parameters=parameters,
        python=platform.python_version(),
        tokens=len(stream) + held_out.numel(),
        seed=SEED,
        steps=steps,
        batch=BATCH,
        context=CONTEXT,
        validation=validation,
        baseline=baseline,
        options="" if steps == STEPS else f" --steps {steps}",
    )
    (directory / "README.md").write_text(card, encoding="utf-8")
    seconds = time.perf_counter() - began
    print(f"final validation loss {validation:.4f}; wrote {directory} after {seconds:.0f} s", flush=True)


def main() -> None:
    """Read the command line and make the models it names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", choices=["gpt2", "llama", "all"], default="all")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="default: beside this script")
    parser.add_argument("--steps", type=int, default=STEPS, help="default: %(default)s")
    args = parser.parse_args()
    if args.steps < 1:
        parser.error("--steps must be at least 1")

    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    for name in ["gpt2", "llama"] if args.model == "all" else [args.model]:
        make(name, args.out, args.steps)


if __name__ == "__main__":
    main()
