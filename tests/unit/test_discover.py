"""discover() on modules of all makes; the zoo of transformers' architectures is in tests/zoo."""

import pytest
import torch
from torch import nn

from pytest_deaddir import discover


class MyNorm(nn.Module):
    """An RMSNorm that somebody wrote this morning."""

    def __init__(self, width):
        super().__init__()
        self.scale = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, hidden):
        return hidden / (hidden.square().mean(-1, keepdim=True) + 1e-6).sqrt() * self.scale


class Attention(nn.Module):
    def __init__(self, width, heads, qk_norm):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.heads = heads
        self.q_norm = MyNorm(width // heads) if qk_norm == "head" else MyNorm(width) if qk_norm == "full" else None

    def forward(self, x):
        q, k, v = self.q(x), self.k(x), self.v(x)
        if self.q_norm is not None and self.q_norm.scale.numel() == x.shape[-1]:
            q = self.q_norm(q)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        if self.q_norm is not None and self.q_norm.scale.numel() != x.shape[-1]:
            q = self.q_norm(q)
        return self.o(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, width, style, qk_norm=None, heads=2):
        super().__init__()
        self.attention = Attention(width, heads, qk_norm)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        count = {"parallel": 1, "sandwich": 4}.get(style, 2)
        self.norms = nn.ModuleList(MyNorm(width) for _ in range(count))
        self.style = style

    def forward(self, x):
        a, b, *more = self.norms if len(self.norms) > 1 else (self.norms[0], None)
        if self.style == "pre-norm":
            x = x + self.attention(a(x))
            return x + self.mlp(b(x))
        if self.style == "post-norm":
            x = a(x + self.attention(x))
            return b(x + self.mlp(x))
        if self.style == "parallel":
            return x + self.attention(a(x)) + self.mlp(a(x))
        if self.style == "sandwich":
            x = x + more[0](self.attention(a(x)))
            return x + more[1](self.mlp(b(x)))
        x = x + a(self.attention(x))  # norm after the sublayer, as OLMo 2
        return x + b(self.mlp(x))


class GPT(nn.Module):
    def __init__(self, style="pre-norm", layers=3, width=16, final=True, qk_norm=None, logits=True):
        super().__init__()
        self.embed = nn.Embedding(11, width)
        self.embed_norm = MyNorm(width)
        self.blocks = nn.ModuleList(Block(width, style, qk_norm) for _ in range(layers))
        self.closing = MyNorm(width) if final else nn.Identity()
        self.head = nn.Linear(width, 11) if logits else nn.Identity()

    def forward(self, tokens):
        x = self.embed_norm(self.embed(tokens))
        for block in self.blocks:
            x = block(x)
        return self.head(self.closing(x))


TOKENS = torch.randint(11, (2, 9), generator=torch.Generator().manual_seed(0))


def built(*args, **kwargs):
    torch.manual_seed(0)
    return GPT(*args, **kwargs)


@pytest.mark.parametrize("style", ["pre-norm", "post-norm", "parallel", "sandwich", "other"])
def test_a_hand_written_gpt(style):
    found = discover(built(style, final=style != "post-norm"), (TOKENS,))
    [stack] = found.stacks
    assert (stack.path, stack.blocks, stack.style) == ("blocks", ("blocks.0", "blocks.1", "blocks.2"), style)
    assert found.final_norm == stack.final_norm == ("blocks.2.norms.1" if style == "post-norm" else "closing")
    roles = {norm.path: norm.role for norm in found.norms}
    assert roles.pop(found.final_norm) == "final"
    assert roles.pop("embed_norm") == "embedding"
    assert set(roles.values()) == {"block"}
    assert {norm.kind for norm in found.norms} == {"rmsnorm"}
    assert found.how == "values"


@pytest.mark.parametrize("logits", [False, True])
def test_the_final_norm_with_and_without_a_head_over_it(logits):
    assert discover(built(logits=logits), (TOKENS,)).final_norm == "closing"


@pytest.mark.parametrize("logits", [False, True])
def test_a_stream_that_no_norm_closes_has_no_final_norm(logits):
    found = discover(built(final=False, logits=logits), (TOKENS,))
    assert found.final_norm is None
    assert [stack.final_norm for stack in found.stacks] == [None]


@pytest.mark.parametrize("qk_norm", ["head", "full"])
def test_query_norms_are_not_taken_for_the_stream(qk_norm):
    """Told by width where they are per head, and by what feeds them where they have the stream's own width."""
    found = discover(built(qk_norm=qk_norm), (TOKENS,))
    assert {norm.path for norm in found.norms if norm.role == "qk"} == {
        f"blocks.{i}.attention.q_norm" for i in range(3)
    }
    assert found.stacks[0].style == "pre-norm"


@pytest.mark.parametrize("first", [True, False], ids=["pre-norm", "post-norm"])
def test_torchs_own_encoder(first):
    """Its fused fast path does not call the norms as modules."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=first)
    module = nn.TransformerEncoder(layer, 3, norm=nn.LayerNorm(16) if first else None, enable_nested_tensor=False)
    for child in module.modules():
        if isinstance(child, nn.LayerNorm):
            nn.init.uniform_(child.weight, 0.5, 1.5)
    found = discover(module, (torch.randn(2, 7, 16),))
    [stack] = found.stacks
    assert (stack.path, len(stack.blocks), stack.style) == ("layers", 3, "pre-norm" if first else "post-norm")
    assert found.final_norm == ("norm" if first else "layers.2.norm2")
    assert len(found.norms) == (7 if first else 6)


def test_blocks_in_a_sequential():
    torch.manual_seed(0)
    module = nn.Sequential(*(Block(16, "pre-norm") for _ in range(2)), MyNorm(16))
    found = discover(module, (torch.randn(2, 5, 16),))
    assert found.final_norm == "2"
    assert {norm.path: norm.role for norm in found.norms}["2"] == "final"


def test_a_shared_layer_runs_again():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([Block(16, "post-norm")])

        def forward(self, x):
            for _ in range(4):
                x = self.layers[0](x)
            return x

    torch.manual_seed(0)
    found = discover(Shared(), (torch.randn(2, 5, 16),))
    [stack] = found.stacks
    assert stack.blocks == ("layers.0",) * 4
    assert stack.style == "post-norm"
    assert found.final_norm == "layers.0.norms.1"


def test_two_stacks_each_with_its_final_norm():
    class EncoderDecoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.decoder = built(logits=False), built(logits=False)

        def forward(self, tokens):
            return self.decoder(tokens) + 0 * self.encoder(tokens).sum()

    found = discover(EncoderDecoder(), (TOKENS,))
    assert [stack.final_norm for stack in found.stacks] == ["decoder.closing", "encoder.closing"]


def test_hidden_states_changed_in_place_are_still_told_apart():
    class InPlace(Block):
        def forward(self, x):
            x += self.attention(self.norms[0](x))
            x += self.mlp(self.norms[1](x))
            return x

    torch.manual_seed(0)
    module = built()
    module.blocks = nn.ModuleList(InPlace(16, "pre-norm") for _ in range(3))
    found = discover(module, (TOKENS,))
    assert found.stacks[0].blocks == ("blocks.0", "blocks.1", "blocks.2")
    assert found.final_norm == "closing"


def test_a_gated_norm_is_no_norm():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.linear = nn.RMSNorm(8), nn.Linear(8, 8)
            self.gated = GatedNorm()

        def forward(self, x):
            return self.gated(self.norm(x), self.linear(x))

    class GatedNorm(nn.RMSNorm):
        def __init__(self):
            super().__init__(8)

        def forward(self, x, gate=None):
            return super().forward(x if gate is None else x * nn.functional.silu(gate))

    torch.manual_seed(0)
    assert [norm.path for norm in discover(Gated(), (torch.randn(3, 8),)).norms] == ["norm"]


def test_without_a_forward_structure_decides_and_says_so():
    found = discover(built())
    assert found.how == "structure (no inputs)"
    assert found.final_norm == "closing"
    assert [stack.path for stack in found.stacks] == ["blocks"]
    assert len(found.norms) == 8


def test_on_the_meta_device_identity_decides():
    with torch.device("meta"):
        module = built()
        found = discover(module, (torch.zeros(2, 9, dtype=torch.long),))
    assert found.how == "identity"
    assert found.final_norm == "closing"
    assert found.stacks[0].style == "pre-norm"


def test_a_failing_forward_raises_and_leaves_no_hook():
    module = built()
    with pytest.raises(IndexError):
        discover(module, (TOKENS + 100,))
    assert not any(child._forward_hooks or child._forward_pre_hooks for child in module.modules())


def test_modes_of_submodules_are_restored():
    module = built().train()
    module.blocks[1].eval()
    discover(module, (TOKENS,))
    assert module.training
    assert not module.blocks[1].training
    assert module.blocks[0].training
