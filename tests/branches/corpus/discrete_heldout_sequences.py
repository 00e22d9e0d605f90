"""Held out: modules over sequences, codes and state; see `case.py` for the format."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from pytest_torchexport import integers
from tests.branches.corpus.case import EXAMPLE, Call, Case, Infeasible, Truth, call, normal, seeded

CASES: list[Case] = []


class BeamDecoder(nn.Module):
    """Beam search over a bigram model; stops when every beam has ended."""

    def __init__(self, vocab: int = 10, beams: int = 2, max_length: int = 6) -> None:
        super().__init__()
        self.end = 0
        self.beams = beams
        self.max_length = max_length
        self.bigram = nn.Embedding(vocab, vocab)
        with torch.no_grad():
            self.bigram.weight.mul_(2)

    def forward(self, start: torch.Tensor) -> torch.Tensor:
        score, first = self.bigram(start[-1]).log_softmax(-1).topk(self.beams)
        paths = first.unsqueeze(1)
        for _ in range(self.max_length - 1):
            finished = paths[:, -1] == self.end
            if finished.all():
                break
            step = self.bigram(paths[:, -1]).log_softmax(-1)
            if finished.any():
                only_end = torch.full_like(step, float("-inf"))
                only_end[:, self.end] = 0
                step = torch.where(finished.unsqueeze(1), only_end, step)
            score, best = (score.unsqueeze(1) + step).flatten().topk(self.beams)
            paths = torch.cat([paths[best // step.shape[1]], (best % step.shape[1]).unsqueeze(1)], dim=1)
        return paths


CASES.append(
    Case(
        "beam decoder",
        make=lambda: seeded(BeamDecoder, seed=4),
        args=lambda: (torch.tensor([7, 4]),),
        decisions=[
            Truth("range(self.max_length - 1)", "loop", other=lambda: call(torch.tensor([4, 1]))),
            Truth("finished.all()", true=lambda: call(torch.tensor([4, 1])), false=EXAMPLE),
            Truth("finished.any()", true=lambda: call(torch.tensor([4, 1])), false=EXAMPLE),
        ],
        options={"inputs": {"start": integers(1, 9)}},
        wrong={"trace": "finished.any()", "onnx-torchscript": "finished.any()", "export": "refused", "onnx": "refused"},
        right=("script",),
    )
)


class LengthAwareGRU(nn.Module):
    """Recurrent encoder of padded sequences: sorts by length, cuts to the longest, treats empty ones apart."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.cell = nn.GRU(width, width, batch_first=True)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        longest = int(lengths.max())
        if longest == 0:
            return x.new_zeros(x.shape[0], x.shape[2])
        order = None
        if (lengths[1:] > lengths[:-1]).any():
            order = lengths.argsort(descending=True)
            x, lengths = x[order], lengths[order]
        hidden, _ = self.cell(x[:, :longest])
        last = (lengths - 1).clamp_min(0)
        out = hidden[torch.arange(x.shape[0]), last]
        if lengths[-1] == 0:
            out = out * (lengths > 0).unsqueeze(1)
        if order is not None:
            out = out[order.argsort()]
        return out


CASES.append(
    Case(
        "length-aware gru",
        make=lambda: seeded(LengthAwareGRU),
        args=lambda: (normal(3, 5, 4), torch.tensor([5, 3, 2])),
        decisions=[
            Truth("int(lengths.max())", "number", other=lambda: call(normal(3, 5, 4), torch.tensor([4, 3, 2]))),
            Truth("longest == 0", true=lambda: call(normal(3, 5, 4), torch.tensor([0, 0, 0])), false=EXAMPLE),
            Truth(
                "(lengths[1:] > lengths[:-1]).any()",
                true=lambda: call(normal(3, 5, 4), torch.tensor([3, 5, 2])),
                false=EXAMPLE,
            ),
            Truth("lengths[-1] == 0", true=lambda: call(normal(3, 5, 4), torch.tensor([5, 3, 0])), false=EXAMPLE),
            Truth(
                "order is not None",
                true=lambda: call(normal(3, 5, 4), torch.tensor([3, 5, 2])),
                false=EXAMPLE,
            ),
        ],
        wrong={
            "trace": "lengths[-1] == 0",
            "onnx-torchscript": "lengths[-1] == 0",
            "export": "refused",
            "onnx": "refused",
        },
    )
)


class CTCGreedy(nn.Module):
    """Best path of a speech model: repeats are collapsed, blanks are dropped, silence gives nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.blank = 0
        self.acoustic = nn.Linear(6, 5)
        self.characters = nn.Embedding(5, 3)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        labels = []
        previous = self.blank
        for label in self.acoustic(frames).argmax(-1).tolist():
            if label not in (previous, self.blank):
                labels.append(label)
            previous = label
        if not labels:
            return frames.new_zeros(1, 3)
        return self.characters(torch.tensor(labels))


def silence() -> Call:
    model = seeded(CTCGreedy)
    return call(5 * model.acoustic.weight[0].detach().expand(7, 6).clone())


CASES.append(
    Case(
        "ctc greedy",
        make=lambda: seeded(CTCGreedy),
        args=lambda: (normal(7, 6),),
        decisions=[
            Truth("self.acoustic(frames).argmax(-1).tolist()", "number", other=lambda: call(normal(7, 6, seed=1))),
            Truth("label not in (previous, self.blank)", true=EXAMPLE, false=EXAMPLE),
            Truth("labels", true=EXAMPLE, false=silence),
        ],
        wrong={"trace": "labels", "onnx-torchscript": "labels", "export": "refused", "onnx": "refused"},
    )
)


class StackMachine(nn.Module):
    """Executes a program of tokens on embeddings: push, add, multiply; a malformed program gives the unit."""

    PUSH, ADD, MULTIPLY = 0, 1, 2

    def __init__(self) -> None:
        super().__init__()
        self.unit = nn.Parameter(torch.ones(4))
        self.values = nn.Parameter(torch.randn(6, 4))

    def forward(self, program: torch.Tensor) -> torch.Tensor:
        stack: list[torch.Tensor] = []
        try:
            for position, code in enumerate(program.tolist()):
                match code:
                    case 0:
                        stack.append(self.values[position])
                    case 1:
                        stack.append(stack.pop() + stack.pop())
                    case 2:
                        stack.append(stack.pop() * stack.pop())
        except IndexError:
            return self.unit * 1.0
        if len(stack) > 1:
            return torch.stack(stack).mean(0)
        return stack[0]


CASES.append(
    Case(
        "stack machine",
        make=lambda: seeded(StackMachine),
        args=lambda: (torch.tensor([0, 0, 1, 0, 1]),),
        decisions=[
            Truth("program.tolist()", "number", other=lambda: call(torch.tensor([0, 0, 2, 0, 1]))),
            Truth("enumerate(program.tolist())", "loop", other=lambda: call(torch.tensor([1, 0, 0, 0, 0]))),
            Truth("0", true=EXAMPLE, false=EXAMPLE),
            Truth("1", true=EXAMPLE, false=lambda: call(torch.tensor([0, 0, 2, 0, 1]))),
            Truth(
                "2",
                true=lambda: call(torch.tensor([0, 0, 2, 0, 1])),
                false=lambda: call(torch.tensor([0, 0, 3, 0, 1])),
            ),
            Truth("except IndexError", "exception", true=lambda: call(torch.tensor([1, 0, 0, 0, 0])), false=EXAMPLE),
            Truth("len(stack) > 1", true=lambda: call(torch.tensor([0, 0, 0, 0, 1])), false=EXAMPLE),
        ],
        options={"inputs": {"program": integers(0, 3)}},
        wrong={
            "trace": "program.tolist()",
            "onnx-torchscript": "program.tolist()",
            "export": "refused",
            "onnx": "refused",
        },
    )
)


class RegisterDecoder(nn.Module):
    """Status words of a sensor: bit 7 is an alarm, the low nibble a gain, the version must be known."""

    def __init__(self) -> None:
        super().__init__()
        self.calibrate = nn.Linear(4, 4)

    def forward(self, samples: torch.Tensor, status: torch.Tensor) -> torch.Tensor:
        word = int(status)
        if word >> 8 not in (1, 2):
            return torch.zeros_like(samples)
        if word & 0x80:
            samples = samples.clamp(-1, 1)
        gain = word & 0x0F
        if gain > 9:
            gain = 9
        out = self.calibrate(samples) * (1 + gain)
        if word & 0x0F > 15:
            out = -out
        return out


def status_word(word: int) -> Call:
    return call(normal(3, 4, scale=2.0), torch.tensor(word, dtype=torch.int32))


CASES.append(
    Case(
        "register decoder",
        make=lambda: seeded(RegisterDecoder),
        args=lambda: (normal(3, 4, scale=2.0), torch.tensor(0x203, dtype=torch.int32)),
        decisions=[
            Truth("int(status)", "number", other=lambda: status_word(0x204)),
            Truth("word >> 8 not in (1, 2)", true=lambda: status_word(0x003), false=EXAMPLE),
            Truth("word & 0x80", true=lambda: status_word(0x283), false=EXAMPLE),
            Truth("gain > 9", true=lambda: status_word(0x20C), false=EXAMPLE),
            Truth("word & 0x0F > 15", true=Infeasible("four bits are at most 15"), false=EXAMPLE),
        ],
        options={"inputs": {"status": integers(0, 0xFFF)}},
        wrong={"trace": "int(status)", "onnx-torchscript": "int(status)", "export": "refused", "onnx": "refused"},
        right=("script",),
    )
)


class EventStream(nn.Module):
    """Time stamps in seconds: events out of order are sorted, a long pause starts a new session."""

    def __init__(self) -> None:
        super().__init__()
        self.kind = nn.Embedding(6, 4)
        self.pause = 1800

    def forward(self, times: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
        gaps = times.diff()
        if (gaps < 0).any():
            times, order = times.sort()
            kinds = kinds[order]
            gaps = times.diff()
        if (gaps > self.pause).any():
            session = (gaps > self.pause).cumsum(0)
            current = F.pad(session, (1, 0)) == session[-1]
            kinds = kinds[current]
        if len(kinds) == 1:
            return self.kind(kinds[0])
        return self.kind(kinds).mean(0)


def events(*times: int) -> Call:
    return call(torch.tensor(times), torch.tensor([5, 0, 2, 2, 3]))


CASES.append(
    Case(
        "event stream",
        make=lambda: seeded(EventStream),
        args=lambda: (torch.tensor([100, 160, 900, 2000, 2100]), torch.tensor([5, 0, 2, 2, 3])),
        decisions=[
            Truth("(gaps < 0).any()", true=lambda: events(100, 900, 160, 2000, 2100), false=EXAMPLE),
            Truth("(gaps > self.pause).any()", true=lambda: events(100, 160, 2050, 2060, 2100), false=EXAMPLE),
            Truth("len(kinds) == 1", true=lambda: events(100, 160, 180, 190, 2100), false=EXAMPLE),
        ],
        wrong={
            "trace": "(gaps > self.pause).any()",
            "onnx-torchscript": "(gaps > self.pause).any()",
            "export": "refused",
            "onnx": "refused",
        },
        right=("script",),
    )
)


class UTF8Classifier(nn.Module):
    """Bytes of a text: anything outside ASCII goes through another table, a stray continuation is an error."""

    def __init__(self) -> None:
        super().__init__()
        self.ascii = nn.Embedding(128, 4)
        self.other = nn.Embedding(128, 4)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        codes = text.long()
        if (codes < 0x80).all():
            return self.ascii(codes).mean(0)
        if codes[0] & 0xC0 == 0x80:
            return torch.full((4,), float("nan"))
        high = codes >= 0x80
        if (codes > 0xFF).any():
            high = ~high
        return torch.where(high.unsqueeze(1), self.other(codes % 128), self.ascii(codes % 128)).mean(0)


CASES.append(
    Case(
        "utf-8 classifier",
        make=lambda: seeded(UTF8Classifier),
        args=lambda: (torch.tensor(list(b"entropy"), dtype=torch.uint8),),
        decisions=[
            Truth(
                "(codes < 0x80).all()",
                true=EXAMPLE,
                false=lambda: call(torch.tensor([110, 195, 169, 101, 101, 101, 101], dtype=torch.uint8)),
            ),
            Truth(
                "codes[0] & 0xC0 == 0x80",
                true=lambda: call(torch.tensor([169, 110, 101, 101, 101, 101, 101], dtype=torch.uint8)),
                false=lambda: call(torch.tensor([110, 195, 169, 101, 101, 101, 101], dtype=torch.uint8)),
            ),
            Truth(
                "(codes > 0xFF).any()",
                true=Infeasible("a byte is at most 255"),
                false=lambda: call(torch.tensor([110, 195, 169, 101, 101, 101, 101], dtype=torch.uint8)),
            ),
        ],
        wrong={
            "trace": "(codes < 0x80).all()",
            "onnx-torchscript": "(codes < 0x80).all()",
            "export": "refused",
            "onnx": "refused",
        },
        right=("script",),
    )
)


class MergeTokenizer(nn.Module):
    """Byte-pair merges on the fly: the pairs of a table are replaced until none is left."""

    def __init__(self) -> None:
        super().__init__()
        self.merges = {(3, 4): 10, (10, 5): 11, (7, 7): 12}
        self.embed = nn.Embedding(13, 4)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        symbols = tokens.tolist()
        while pairs := [n for n in range(len(symbols) - 1) if (symbols[n], symbols[n + 1]) in self.merges]:
            at = pairs[0]
            symbols[at : at + 2] = [self.merges[symbols[at], symbols[at + 1]]]
        return self.embed(torch.tensor(symbols)).sum(0)


CASES.append(
    Case(
        "merge tokenizer",
        make=lambda: seeded(MergeTokenizer),
        args=lambda: (torch.tensor([1, 3, 4, 8, 6, 9]),),
        decisions=[
            Truth("tokens.tolist()", "number", other=lambda: call(torch.tensor([1, 3, 4, 8, 6, 2]))),
            Truth(
                "pairs := [n for n in range(len(symbols) - 1) if (symbols[n], symbols[n + 1]) in self.merges]",
                true=EXAMPLE,
                false=EXAMPLE,
            ),
            Truth(
                "pairs := [n for n in range(len(symbols) - 1) if (symbols[n], symbols[n + 1]) in self.merges]",
                "loop",
                other=lambda: call(torch.tensor([1, 3, 4, 5, 6, 9])),
            ),
            Truth("range(len(symbols) - 1)", "loop", other=lambda: call(torch.tensor([1, 3, 4, 5, 6, 9]))),
            Truth("(symbols[n], symbols[n + 1]) in self.merges", true=EXAMPLE, false=EXAMPLE),
        ],
        wrong={
            "trace": "tokens.tolist()",
            "onnx-torchscript": "tokens.tolist()",
            "export": "refused",
            "onnx": "refused",
        },
    )
)


class DriftMonitor(nn.Module):
    """Keeps the mean of what it has seen; once warm it damps inputs that stray from it, and counts them."""

    centre: torch.Tensor
    seen: torch.Tensor

    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.out = nn.Linear(width, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean(0)
        if self.seen == 0:
            self.centre = mean
        elif self.seen >= 2 and (mean - self.centre).abs().max() > 1.5:
            x = self.centre + 0.1 * (x - self.centre)
        self.centre = 0.9 * self.centre + 0.1 * mean
        self.seen = self.seen + 1
        return self.out(x)


CASES.append(
    Case(
        "drift monitor",
        make=lambda: seeded(DriftMonitor),
        args=lambda: (normal(4, 5),),
        decisions=[
            Truth("self.seen == 0", true=EXAMPLE, false=EXAMPLE),
            Truth("self.seen >= 2", true=EXAMPLE, false=EXAMPLE),
            Truth(
                "(mean - self.centre).abs().max() > 1.5",
                true=lambda: [call(normal(4, 5)), call(normal(4, 5)), call(normal(4, 5, shift=3.0))],
                false=EXAMPLE,
            ),
        ],
        options={"calls": 3},
        wrong={"trace": "(mean - self.centre).abs().max() > 1.5", "export": "refused", "onnx": "refused"},
    )
)
