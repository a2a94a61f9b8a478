"""The card that is not there refuses, counts and computes what one that is there would."""

from __future__ import annotations

import copy
import threading

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hwm.devices import choose_format, find_device, open_runtime
from hwm.types import split_digits
from tests.pretend.device import pretending
from tests.pretend.tensors import DeviceError, Pretend


@pytest.fixture(params=["cuda", "mps"])
def card(request):
    with pretending(request.param) as found:
        yield found


@pytest.fixture
def cuda():
    with pretending("cuda") as found:
        yield found


REFUSED = {
    "an operand elsewhere": lambda x: x + torch.arange(3),
    "a table elsewhere": lambda x: torch.arange(9.0)[x.long()],
    "weights elsewhere": lambda x: nn.Linear(3, 2)(x),
    "a number among tensors": lambda x: torch.stack([x[0], torch.tensor(1.0)]),
    "a value elsewhere": lambda x: x.index_put_((torch.tensor([0]),), torch.ones(1)),
    "numpy": lambda x: x.numpy(),
    "an array of it": lambda x: np.asarray(x),
    "a generator of the CPU": lambda x: torch.rand(3, device=x.device, generator=torch.Generator()),
    "a generator of the card for the CPU": lambda x: torch.rand(3, generator=torch.Generator(x.device)),
    "a draw in place": lambda x: x.uniform_(generator=torch.Generator()),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_a_card_refuses(card, what):
    x = torch.ones(3, device=card.device)
    with pytest.raises(DeviceError):
        REFUSED[what](x)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x.double(),
        lambda x: x.to(torch.float64),
        lambda x: x.sum(dtype=torch.float64),
        lambda x: torch.zeros(2, dtype=torch.float64, device="mps"),
        lambda x: torch.ones(2, dtype=torch.float64).to("mps"),
    ],
)
def test_mps_has_no_float64(make):
    with pretending("mps"):
        x = torch.ones(3).to("mps")
        with pytest.raises(DeviceError, match="float64"):
            make(x)
        assert x.cpu().double().dtype == torch.float64


WAITS = {
    "item": lambda x: x[0].item(),
    "bool": lambda x: bool(x[0]),
    "int": lambda x: int(x[0]),
    "float": lambda x: float(x[0]),
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "to": lambda x: x.to("cpu"),
    "a mask as index": lambda x: x[x > 1],
    "a mask to put under": lambda x: x.index_put_((x > 1,), x[:1].sum()),
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 1),
    "unique": lambda x: x.unique(),
    "equal": lambda x: torch.equal(x, x + 1),
    "counts": lambda x: torch.repeat_interleave(x, x.long()),
    "numbers to the card": lambda x: torch.tensor([1.0, 2.0], device=x.device),
    "an array to the card": lambda x: torch.zeros(3).to(x.device),
    "an index of the CPU": lambda x: x[torch.tensor([0, 2])],
    "a copy in place": lambda x: x.copy_(torch.zeros(3)),
}
GOES_ON = {
    "arithmetic": lambda x: (x * 2 + torch.tensor(0.5)).clamp(0, 1),
    "an index on the card": lambda x: x[torch.zeros(2, dtype=torch.long, device=x.device)],
    "a mask to fill under": lambda x: x.masked_fill(x > 1, 0.0),
    "a choice": lambda x: torch.where(x > 1, x, 0.0),
    "zeros": lambda x: torch.zeros(3, device=x.device) + x.new_ones(3) + torch.zeros_like(x),
    "an upload beside": lambda x: torch.zeros(3).to(x.device, non_blocking=True),
    "a download beside": lambda x: x.to("cpu", non_blocking=True),
    "another type": lambda x: x.to(torch.bfloat16).to(x),
    "a norm": lambda x: nn.functional.layer_norm(x, (3,)),
}


@pytest.mark.parametrize("what", WAITS)
def test_what_the_host_waits_for(card, what):
    x = torch.arange(3.0, device=card.device)
    card.forget()
    WAITS[what](x)
    assert sum(card.waits.values()) >= 1


@pytest.mark.parametrize("what", GOES_ON)
def test_what_it_does_not_wait_for(card, what):
    x = torch.arange(3.0, device=card.device)
    card.forget()
    GOES_ON[what](x)
    assert not card.waits


def test_results_are_those_of_the_cpu(card):
    def train(device: torch.device) -> list[Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 8), nn.Dropout(0.5), nn.LayerNorm(8), nn.Linear(8, 5))
        model.to(device)
        model = copy.deepcopy(model)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2, fused=True)
        ids = torch.arange(5, device=device)
        for _ in range(2):
            loss = nn.functional.cross_entropy(checkpoint(model, ids, use_reentrant=False), ids)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        return [p.detach() for p in model.parameters()]

    ours, theirs = train(card.device), train(torch.device("cpu"))
    assert all(isinstance(p, Pretend) and p.device == card.device for p in ours)
    torch.testing.assert_close([p.cpu() for p in ours], theirs)


def test_gradients_cross_from_one_to_the_other(card):
    x = torch.ones(3, requires_grad=True)
    (x.to(card.device) * 2).cpu().sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [2, 2, 2]


def test_products_are_cast_where_they_are_asked_to_be(card):
    layer, x = nn.Linear(3, 3).to(card.device), torch.ones(2, 3, device=card.device)
    with torch.autocast(card.kind, torch.bfloat16):
        assert torch.is_autocast_enabled(card.kind)
        assert layer(x).dtype == torch.bfloat16
    assert layer(x).dtype == torch.float32


def test_lines_and_kernels_are_told(card):
    card.follow = True
    ids = torch.arange(6, device=card.device)
    card.forget()
    split_digits(ids, (2, 3))
    assert all(place.startswith("types.py:") for place in [*card.uploads, *card.waits])
    assert card.kernels["aten.floor_divide.default"] == 1
    assert {name for name, _ in card.sites} == set(card.kernels)


def test_threads_are_inside(card):
    made: list[Tensor] = []
    thread = threading.Thread(
        target=lambda: made.append(torch.ones(2).to(card.device) + torch.ones(2, device=card.device))
    )
    thread.start()
    thread.join()
    assert isinstance(made[0], Pretend)


def test_auto_finds_the_card(card):
    assert find_device("auto").type == card.kind
    assert str(open_runtime("auto", "auto")) == {"cuda": "pretended card, bfloat16", "mps": "mps, float32"}[card.kind]


def test_a_card_without_bfloat16_takes_float16():
    with pretending("cuda", bfloat16=False):
        assert choose_format("auto", find_device()) == "float16"


def test_nothing_is_left_behind():
    before = (torch.cuda.is_available, torch.Generator, torch.inference_mode.__enter__, threading.Thread.run)
    with pretending("cuda") as card:
        split_digits(torch.arange(6, device=card.device), (2, 3))
    assert before == (torch.cuda.is_available, torch.Generator, torch.inference_mode.__enter__, threading.Thread.run)
    assert type(torch.zeros(3).to("cpu")) is Tensor
    with pretending("cuda") as again:
        split_digits(torch.arange(6, device=again.device), (2, 3))
        assert again.uploads, "what was kept for the first card is not taken for the second's"


def test_an_event_is_waited_for_where_nothing_was_to_be_done_after_it(cuda):
    event = torch.cuda.Event()
    event.record()
    event.synchronize()
    assert sum(cuda.waits.values()) == 1
    torch.ones(2, device="cuda").sum()
    event.synchronize()
    assert sum(cuda.waits.values()) == 1


def test_a_captured_graph_runs_again(cuda):
    x, weight, total = torch.ones(2, device="cuda"), torch.full((2,), 3.0, device="cuda"), torch.zeros(2, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = (x * weight).reshape(2, 1)[:, 0] + torch.ones(2, device="cuda")
    total.add_(1)
    assert y.isnan().all(), "nothing has been computed yet"
    for value in (1.0, 2.0):
        x.fill_(value)
        graph.replay()
        assert y.tolist() == [3 * value + 1] * 2


@pytest.mark.parametrize("what", ["item", "a mask as index", "numbers to the card", "cpu"])
def test_nothing_waits_while_a_graph_is_captured(cuda, what):
    x = torch.ones(3, device="cuda")
    with torch.cuda.graph(torch.cuda.CUDAGraph()), pytest.raises(DeviceError, match="capturing"):
        WAITS[what](x)


def test_what_other_versions_of_pytorch_look_for_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no driver is asked: builds for CUDA raise on a machine without one."""

    def driver() -> bool:
        raise RuntimeError("CUDA driver version is insufficient")

    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", driver)
    monkeypatch.setattr(torch._C, "_accelerator_getAccelerator", lambda: torch.device("cuda"))
    with pretending("cuda"):
        assert not torch.cuda.is_current_stream_capturing()  # as PyTorch 2.9's optimizers do before a step
        assert torch.accelerator.current_accelerator(check_available=True) is None  # as 2.13's do
        assert callable(torch.backends.mps.is_available.__wrapped__)  # as the compiler of 2.14 looks for, once imported
