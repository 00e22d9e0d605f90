"""Modules that compute with tokens before they decide: embeddings, hashes, greedy decoding, drafts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from pytest_torchexport import integers
from tests.branches.corpus.case import EXAMPLE, Call, Case, Infeasible, Truth, call, seeded

CASES: list[Case] = []


def ids(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows)


class TextGate(nn.Module):
    """A cheap score of the tokens decides whether the expensive block runs."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Embedding(30, 1)
        with torch.no_grad():
            self.score.weight.copy_(torch.linspace(-1.0, 1.0, 30)[torch.randperm(30)].unsqueeze(1))
        self.embed = nn.Embedding(30, 8)
        self.block = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(ids)
        if self.score(ids).mean() > 0.6:
            hidden = hidden + self.block(hidden)
        return hidden.mean(1)


CASES.append(
    Case(
        "text gate",
        make=lambda: seeded(TextGate),
        args=lambda: (ids([3, 17, 8, 25, 12, 4]),),
        decisions=[
            Truth(
                "self.score(ids).mean() > 0.6",
                true=lambda: call(seeded(TextGate).score.weight.argmax().expand(1, 6).clone()),
                false=EXAMPLE,
            )
        ],
        options={"inputs": {"ids": integers(0, 29)}},
        wrong={
            "trace": "self.score(ids).mean() > 0.6",
            "onnx-torchscript": "self.score(ids).mean() > 0.6",
            "export": "refused",
            "onnx": "refused",
        },
        right=("script",),
    )
)


class HashedBuckets(nn.Module):
    """Polynomial hash of an n-gram; a few buckets are kept for frequent n-grams and have their own vector."""

    def __init__(self, buckets: int = 16) -> None:
        super().__init__()
        self.buckets = buckets
        self.reserved = 5
        self.table = nn.Embedding(buckets, 4)
        self.frequent = nn.Parameter(torch.randn(4))

    def forward(self, ngram: torch.Tensor) -> torch.Tensor:
        code = 0
        for token in ngram.tolist():
            code = (code * 31 + token) % self.buckets
        if code == self.reserved:
            return self.frequent.clone()
        return self.table(torch.tensor(code))


CASES.append(
    Case(
        "hashed buckets",
        make=lambda: seeded(HashedBuckets),
        args=lambda: (torch.tensor([12, 7, 31, 90]),),
        decisions=[
            Truth("ngram.tolist()", "number", other=lambda: call(torch.tensor([12, 7, 31, 89]))),
            Truth("code == self.reserved", true=lambda: call(torch.tensor([0, 0, 0, 5])), false=EXAMPLE),
        ],
        wrong={"trace": "ngram.tolist()", "onnx-torchscript": "ngram.tolist()", "export": "refused", "onnx": "refused"},
    )
)


class DigitSum(nn.Module):
    """Control digit of an account number."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)

    def forward(self, digits: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(digits).sum(0)
        if int(digits.sum()) % 7 == 3:
            return hidden
        return -hidden


CASES.append(
    Case(
        "digit sum",
        make=lambda: seeded(DigitSum),
        args=lambda: (torch.tensor([4, 1, 0, 9, 9, 2, 5, 6]),),
        decisions=[
            Truth(
                "int(digits.sum()) % 7 == 3",
                true=lambda: call(torch.tensor([3, 0, 0, 0, 0, 0, 0, 0])),
                false=EXAMPLE,
            )
        ],
        wrong={
            "trace": "int(digits.sum()) % 7 == 3",
            "onnx-torchscript": "int(digits.sum()) % 7 == 3",
            "export": "refused",
            "onnx": "refused",
        },
        right=("script",),
    )
)


class TinyGPT(nn.Module):
    """A decoder of one layer with a key-value cache that writes greedily until it says eos."""

    def __init__(self, vocab: int = 24, width: int = 16, context: int = 16) -> None:
        super().__init__()
        self.eos = 1
        self.max_new_tokens = 4
        self.wte = nn.Embedding(vocab, width)
        self.wpe = nn.Embedding(context, width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab, bias=False)

    def step(
        self, ids: torch.Tensor, cache: tuple[torch.Tensor, torch.Tensor] | None
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        past = 0 if cache is None else cache[0].shape[1]
        hidden = self.wte(ids) + self.wpe(torch.arange(past, past + ids.shape[1]))
        query, key, value = self.qkv(self.norm(hidden)).chunk(3, dim=-1)
        if cache is not None:
            key = torch.cat([cache[0], key], dim=1)
            value = torch.cat([cache[1], value], dim=1)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=cache is None)
        hidden = hidden + self.proj(attended)
        return self.head(hidden[:, -1]), (key, value)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        cache = None
        written = ids
        current = ids
        for _ in range(self.max_new_tokens):
            logits, cache = self.step(current, cache)
            current = logits.argmax(-1, keepdim=True)
            written = torch.cat([written, current], dim=1)
            if current.item() == self.eos:
                break
        return written


CASES.append(
    Case(
        "tiny gpt",
        make=lambda: seeded(TinyGPT, seed=7),
        args=lambda: (ids([3, 19, 7, 23, 12]),),
        decisions=[
            Truth("cache is None", true=EXAMPLE, false=EXAMPLE),
            Truth("cache is not None", true=EXAMPLE, false=EXAMPLE),
            Truth("range(self.max_new_tokens)", "loop", other=lambda: call(ids([17, 9, 23, 22, 4]))),
            Truth("current.item() == self.eos", true=lambda: call(ids([17, 9, 23, 22, 4])), false=EXAMPLE),
        ],
        wrong={
            "trace": "current.item() == self.eos",
            "onnx-torchscript": "current.item() == self.eos",
            "export": "refused",
            "onnx": "refused",
        },
        right=("compile",),
    )
)


class SpeculativeVerifier(nn.Module):
    """Accepts the prefix of the draft that the target model would have written itself."""

    def __init__(self, vocab: int = 20) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, 12)
        self.head = nn.Linear(12, vocab)

    def forward(self, context: torch.Tensor, draft: torch.Tensor) -> torch.Tensor:
        previous = torch.cat([context[-1:], draft[:-1]])
        target = self.head(self.embed(previous)).argmax(-1)
        accepted = 0
        while accepted < draft.shape[0] and draft[accepted] == target[accepted]:
            accepted += 1
        if accepted == draft.shape[0]:
            return draft
        return torch.cat([draft[:accepted], target[accepted : accepted + 1]])


def agreeing_draft() -> Call:
    context, model = torch.tensor([4, 11, 19]), seeded(SpeculativeVerifier)
    written = context[-1:]
    for _ in range(4):
        written = torch.cat([written, model.head(model.embed(written[-1:])).argmax(-1)])
    return call(context, written[1:])


CASES.append(
    Case(
        "speculative verifier",
        make=lambda: seeded(SpeculativeVerifier),
        args=lambda: (torch.tensor([4, 11, 19]), torch.tensor([2, 7, 7, 13])),
        decisions=[
            Truth("accepted < draft.shape[0]", true=EXAMPLE, false=agreeing_draft),
            Truth("draft[accepted] == target[accepted]", true=agreeing_draft, false=EXAMPLE),
            Truth(
                "accepted < draft.shape[0] and draft[accepted] == target[accepted]",
                "loop",
                other=agreeing_draft,
            ),
            Truth("accepted == draft.shape[0]", true=agreeing_draft, false=EXAMPLE),
        ],
        options={"inputs": {"context": integers(0, 19), "draft": integers(0, 19)}},
        effort="hard",
        wrong={
            "trace": "draft[accepted] == target[accepted]",
            "onnx-torchscript": "draft[accepted] == target[accepted]",
            "export": "refused",
            "onnx": "refused",
        },
        right=("script",),
    )
)


class GuardedVocabulary(nn.Module):
    """Checks ids after it has used them: the check can never be true."""

    def __init__(self, vocab: int = 25) -> None:
        super().__init__()
        self.vocab = vocab
        self.embed = nn.Embedding(vocab, 6)
        self.unknown = nn.Parameter(torch.randn(6))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(ids)
        if ids.max() >= self.vocab:
            hidden = torch.where((ids >= self.vocab).unsqueeze(-1), self.unknown, hidden)
        phase = ids % 4
        if (phase == 5).any():
            hidden = -hidden
        return hidden.mean(1)


CASES.append(
    Case(
        "guarded vocabulary",
        make=lambda: seeded(GuardedVocabulary),
        args=lambda: (ids([4, 24, 0, 17], [9, 9, 2, 1]),),
        decisions=[
            Truth(
                "ids.max() >= self.vocab",
                true=Infeasible("the embedding has raised for such an id"),
                false=EXAMPLE,
            ),
            Truth("(phase == 5).any()", true=Infeasible("a remainder of 4 is below 4"), false=EXAMPLE),
        ],
        wrong={"export": "refused", "onnx": "refused"},
        right=(
            "trace",
            "onnx-torchscript",
            "script",
        ),
    )
)
