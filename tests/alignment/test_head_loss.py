"""The head's answers and their gradients against the plain formulas, in float64."""

from __future__ import annotations

import pytest
import torch
from align_tiny import tiny_model
from refusals import refuses
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mosa.alignment import head_loss, objective
from mosa.alignment.head_loss import Asked, frozen_head, head_terms, token_log_probs

ROWS, LENGTH, WIDTH, VOCABULARY = 3, 5, 4, 11


def made(dtype: torch.dtype = torch.float64) -> tuple[nn.Linear, Tensor, Tensor]:
    """A frozen head, and the hidden states of a policy and of a reference."""
    torch.manual_seed(0)
    head = nn.Linear(WIDTH, VOCABULARY, bias=False, dtype=dtype).requires_grad_(False)
    policy = torch.randn(ROWS, LENGTH, WIDTH, dtype=dtype, requires_grad=True)
    reference = policy.detach() + 0.3 * torch.randn(ROWS, LENGTH, WIDTH, dtype=dtype)
    return head, policy, reference


def asked(*, with_kl: bool = True, of_reference: bool = True) -> Asked:
    """Questions of every kind, of other positions in every row."""
    kl = torch.tensor([[1, 1, 0, 0, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]]) == 1
    log_probs = torch.tensor([[0, 1, 1, 0, 0], [0, 1, 0, 1, 1], [0, 0, 0, 0, 0]]) == 1
    targets = torch.arange(ROWS * LENGTH).view(ROWS, LENGTH) % VOCABULARY
    return Asked(kl & with_kl, log_probs, torch.tensor([7, 2, 9]), targets, of_reference)


def loss_of(kl: Tensor, log_probs: Tensor, target_log_probs: Tensor) -> Tensor:
    """A sum in which every answer has another weight."""
    weight = torch.linspace(0.5, 1.5, ROWS * LENGTH, dtype=kl.dtype).view(ROWS, LENGTH)
    of_tokens = log_probs @ torch.tensor([0.3, -1.0, 0.7], dtype=kl.dtype)
    return (weight * (2 * kl + of_tokens - 0.4 * target_log_probs)).sum()


@pytest.mark.parametrize("cap", [None, 1.5])
@pytest.mark.parametrize("positions_at_once", [1, 2, 100])
@pytest.mark.parametrize(("with_kl", "of_reference"), [(True, True), (True, False), (False, False)])
def test_values_and_gradients_are_those_of_the_formulas(
    monkeypatch, positions_at_once, with_kl, of_reference, cap
):
    """Also where logits are bounded, by so little that all of them are bent."""
    monkeypatch.setattr(head_loss, "MAX_LOGITS_AT_ONCE", positions_at_once * VOCABULARY)
    head, policy, reference = made()
    question = asked(with_kl=with_kl, of_reference=of_reference)
    needed = reference if with_kl or of_reference else None
    terms = head_terms(head, policy, needed, question, cap=cap)
    (gradient,) = torch.autograd.grad(
        loss_of(terms.kl, terms.log_probs, terms.target_log_probs), policy
    )

    def log_probs_of(hidden: Tensor) -> Tensor:
        logits = head(hidden)
        return (logits if cap is None else cap * torch.tanh(logits / cap)).log_softmax(dim=-1)

    policy_log_probs, reference_log_probs = log_probs_of(policy), log_probs_of(reference)
    is_asked = question.log_probs

    def scored(log_probs: Tensor) -> tuple[Tensor, Tensor]:
        target = log_probs.gather(-1, question.targets[..., None]).squeeze(-1)
        return log_probs[..., question.token_ids] * is_asked[..., None], target * is_asked

    kl = objective.kl_divergence(policy_log_probs, reference_log_probs) * question.kl
    tokens, target = scored(policy_log_probs)
    (expected,) = torch.autograd.grad(loss_of(kl, tokens, target), policy)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(terms.kl, kl, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(terms.log_probs, tokens, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(terms.target_log_probs, target, rtol=1e-12, atol=1e-12)
    likeliest = policy_log_probs.argmax(dim=-1)
    assert torch.equal(terms.likeliest, torch.where(is_asked, likeliest, -1))
    tokens, target = scored(reference_log_probs) if of_reference else (0 * tokens, 0 * target)
    torch.testing.assert_close(terms.reference_log_probs, tokens, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(terms.reference_target_log_probs, target, rtol=1e-12, atol=1e-12)
    assert not terms.reference_log_probs.requires_grad


def test_gradients_are_those_of_finite_differences():
    head, policy, reference = made()

    def loss(hidden: Tensor) -> Tensor:
        terms = head_terms(head, hidden, reference, asked())
        return loss_of(terms.kl, terms.log_probs, terms.target_log_probs)

    assert torch.autograd.gradcheck(loss, (policy,))


def test_kl_of_a_model_with_itself_is_zero_and_so_is_its_gradient():
    head, policy, _ = made(torch.float32)
    kl = head_terms(head, policy, policy.detach(), asked()).kl
    (gradient,) = torch.autograd.grad(kl.sum(), policy)
    assert torch.equal(kl, torch.zeros_like(kl))
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_the_loss_hangs_on_the_policy_where_nothing_is_asked():
    """So that a process without a position to score takes part in the backward pass of all."""
    head, policy, _ = made()
    nowhere = torch.zeros(ROWS, LENGTH, dtype=torch.bool)
    empty = Asked(nowhere, nowhere, torch.tensor([1]), nowhere.long(), False)
    terms = head_terms(head, policy, None, empty)
    (gradient,) = torch.autograd.grad(terms.log_probs.sum(), policy)
    assert torch.equal(gradient, torch.zeros_like(policy))


def test_a_head_in_half_the_precision_answers_in_float32():
    """bfloat16 keeps 8 bits: answers and gradients agree with float32's to some hundredths."""
    head, policy, reference = made(torch.float32)
    exact = head_terms(head, policy, reference, asked())
    low = nn.Linear(WIDTH, VOCABULARY, bias=False).requires_grad_(False)
    low.load_state_dict(head.state_dict())
    terms = head_terms(low.bfloat16(), policy, reference, asked())
    with torch.autocast("cpu", torch.bfloat16):
        mixed = head_terms(head, policy, reference, asked())
    (expected,) = torch.autograd.grad(exact.log_probs.sum() + exact.kl.sum(), policy)
    for answers in (terms, mixed):
        assert answers.log_probs.dtype == answers.kl.dtype == torch.float32
        torch.testing.assert_close(answers.log_probs, exact.log_probs, rtol=0.05, atol=0.05)
        torch.testing.assert_close(answers.kl, exact.kl, rtol=0.2, atol=0.01)
        (gradient,) = torch.autograd.grad(answers.log_probs.sum() + answers.kl.sum(), policy)
        torch.testing.assert_close(gradient, expected, rtol=0.05, atol=0.05)
    torch.testing.assert_close(mixed.kl, terms.kl)


class _LargestTensor(TorchDispatchMode):
    """Notes the most numbers that one operation gave."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.untyped_storage().data_ptr():
            self.size = max(self.size, result.numel())
        return result


def test_nothing_is_wider_than_a_chunk(monkeypatch):
    """Eleven positions, two at a time: forward and backward know nothing larger than the head."""
    monkeypatch.setattr(head_loss, "MAX_LOGITS_AT_ONCE", 2 * 5000)
    head = nn.Linear(WIDTH, 5000, bias=False).requires_grad_(False)
    _, policy, reference = made(torch.float32)
    with _LargestTensor() as largest:
        terms = head_terms(head, policy, reference, asked())
        (terms.kl.sum() + terms.log_probs.sum()).backward()
    assert largest.size <= WIDTH * 5000


@pytest.mark.parametrize("positions_at_once", [2, 100])
def test_token_log_probs_train_the_head_too(monkeypatch, positions_at_once):
    model = tiny_model()
    model.network.double()
    hidden = torch.randn(7, 32, dtype=torch.float64, requires_grad=True)
    tokens = torch.arange(7)
    weight = model.network.get_parameter("lm_head.weight")
    steps = torch.linspace(-1, 1, 7, dtype=torch.float64)

    logits = model.head(hidden)
    log_probs = logits.log_softmax(-1).gather(1, tokens[:, None]).squeeze(1)
    expected = torch.autograd.grad((steps * log_probs).sum(), (hidden, weight))

    monkeypatch.setattr(head_loss, "MAX_LOGITS_AT_ONCE", positions_at_once * model.vocab_size)
    found, likeliest = token_log_probs(model, hidden, tokens)
    gradients = torch.autograd.grad((steps * found).sum(), (hidden, weight))
    torch.testing.assert_close(found, log_probs)
    assert torch.equal(likeliest, logits.argmax(dim=-1))
    for gradient, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-12, atol=1e-12)


def test_a_trained_head_is_refused():
    with refuses("LLaDA", "add_adapter"):
        frozen_head(tiny_model())
