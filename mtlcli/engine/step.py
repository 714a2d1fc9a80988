"""From K losses to `.grad`: both weighting slots, wherever gradients are taken. The trainer and a person's own loop
share it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from mtlcli.engine.accumulate import accumulate, backward_beside, make_dense
from mtlcli.engine.factors import find_factors
from mtlcli.engine.ranks import Ranks
from mtlcli.engine.rows import How, Rows, direction, inner_products
from mtlcli.engine.settings import check_fit, check_ranges
from mtlcli.engine.weighted import Weighted, check_returned
from mtlcli.errors import MtlError
from mtlcli.weighting.base import Anchor, GradientWeighting, LossWeighting, StepView


class Roots(StepView, Protocol):
    """A StepView with what the backward passes need besides."""

    @property
    def samples(self) -> Sequence[Tensor] | None:
        """K tensors (B,) of per-sample losses if the loss weighting has read them, else None."""

    @property
    def passes(self) -> int:
        """Backward passes that the loss weighting has asked for."""

    def extra_roots(self, count: int) -> Sequence[Sequence[Tensor]]:
        """The K losses of each of `count` further training batches, drawn independently, like `roots`."""


class Report(NamedTuple):
    """What one step did."""

    losses: Tensor  # (K,)  raw, detached
    # (K,)  the factor that each raw loss's gradient received on the shared parameters; for a method that mixes the
    # gradients elementwise, the factor before the mixing.
    weights: Tensor
    passes: int  # backward passes through the shared part


class Step:
    """Fills `.grad` of every parameter from the losses of one batch.

    Args:
        shared: trainable parameters that several tasks reach.
        private: per task, the trainable parameters that it alone reaches.
        wrt: where task gradients are taken: at the shared parameters; at the representation (`cut`); or at
            `last_shared` alone, whose weights then hold for all shared parameters (Gramian methods).
        last_shared: the shared parameters nearest to the heads.
        groups: a partition of `shared`; the gradient weighting then decides for each group by itself.
        every: compute the weights of a Gramian method every n-th step and reuse them in between.
        smooth: share of the last weights that a Gramian method's new ones are mixed with (CR-MOGM; Zhou et al., On the
            Convergence of Stochastic Multi-Objective Gradient Manipulation and Beyond, NeurIPS 2022). 0: none.
        rows: how task gradients are computed (`Rows`).

    Raises:
        MtlError: the gradient weighting cannot work with these parameters and settings.
    """

    def __init__(
        self,
        shared: Iterable[nn.Parameter],
        private: Mapping[str, Iterable[nn.Parameter]],
        loss_weighting: LossWeighting,
        gradient_weighting: GradientWeighting,
        wrt: Anchor = "params",
        last_shared: Iterable[nn.Parameter] = (),
        groups: Iterable[Iterable[nn.Parameter]] = (),
        every: int = 1,
        smooth: float = 0.0,
        rows: How = "auto",
        ranks: Ranks | None = None,
    ) -> None:
        self.shared, self.last_shared = list(shared), list(last_shared)
        self.private = [list(private.get(task, ())) for task in loss_weighting.tasks]
        self._owned = [p for parameters in self.private for p in parameters]
        self.loss_weighting, self.gradient_weighting = loss_weighting, gradient_weighting
        self.wrt, self.every, self.smooth = wrt, every, smooth
        self.ranks = ranks or Ranks()
        self.rows = Rows(loss_weighting.tasks, rows)
        self._extra_rows = [Rows(loss_weighting.tasks, rows) for _ in range(gradient_weighting.extra_batches)]
        self._calls = 0
        self._reused: Tensor | None = None  # (groups, K)  the Gramian method's last weights
        self._reach: Tensor | None = None  # (groups, K)  whether a task had a gradient there, where there are groups
        self._absent: Tensor | None = None  # (K,)  tasks that had no part in them, where there are any
        self._met = torch.zeros(len(self.private), dtype=torch.bool)  # tasks that had a part in any so far
        self._methods = [gradient_weighting]
        self._groups: Sequence[Sequence[nn.Parameter]] = ()
        check_ranges(wrt, every, smooth)
        if gradient_weighting.reads != "nothing":
            parts = [list(group) for group in groups]
            settings = (wrt, every, smooth, len(parts) > 1)
            check_fit(loss_weighting, gradient_weighting, *settings, self.shared, self.last_shared)
            self._divide(parts)

    def backward(self, view: Roots, cut: Sequence[Tensor] = ()) -> Report:
        """Add the step's gradients to `.grad`; the graph of `view` is used up.

        Args:
            view: the step.
            cut: with `wrt="representation"`, the tensors that every path from shared parameters to the losses crosses.

        Raises:
            MtlError: the loss weighting breaks its contract, or a task does not reach the shared part.
        """
        losses = view.losses
        scaled = self.loss_weighting(view)
        if self._calls == 0:
            check_returned(self.loss_weighting, scaled, losses)
        raw_heads = self.loss_weighting.heads == "unweighted"
        if self.gradient_weighting.reads == "nothing" and not raw_heads and view.samples is None:
            self._calls += 1
            return Report(losses.detach(), self._descend(scaled, losses), 1 + view.passes)
        trunk, factor, weighted = self._pull(scaled, view)
        heads = Weighted(view.roots, [torch.ones_like(root) for root in view.roots]) if raw_heads else trunk
        weights: Tensor | None = None
        passes = 1
        if self.gradient_weighting.reads == "nothing":
            self._push(trunk, heads)
        elif self._reused is not None and self._calls % self.every and not self._returns(weighted):
            weights = self._push_weighted(self._reused, trunk, heads)
            if self.wrt == "params" and not self._extra_rows:  # as in the steps that compute weights
                make_dense(self.shared)
            passes = len(self._reused)
        elif self._extra_rows:
            first, second = self._extra_jacobians(view, factor)
            self._reused = self._all_weights(first, second, weighted)
            weights = self._push_weighted(self._reused, trunk, heads)
            passes = len(self._reused) + (0 if self.wrt == "last_shared" else 2 * len(trunk.roots))
        elif self.wrt == "last_shared":
            jacobian = self.rows.take(self.last_shared, *trunk, [[]] * len(trunk.roots), keep_graph=True).jacobian
            self.ranks.mean_([jacobian])
            self._reused = self._all_weights(jacobian, jacobian, weighted)
            weights = self._push_weighted(self._reused, trunk, heads)
        else:
            weights = self._combine(weighted, trunk, heads if raw_heads else None, cut)
            passes = len(trunk.roots) if self.wrt == "params" else 1
        self._calls += 1
        return Report(losses.detach(), factor if weights is None else factor * weights, passes + view.passes)

    def gramian(self, view: Roots) -> Tensor:
        """(K, K) inner products of the raw losses' gradients at the shared parameters. The graph stays usable.

        Raises MtlError where there are no shared parameters, or a task does not reach them.
        """
        if not self.shared:
            raise MtlError("gradients of tasks can only be compared at shared parameters; this model has none")
        none: list[list[Tensor]] = [[] for _ in view.roots]
        ones = [torch.ones_like(root) for root in view.roots]
        jacobian = self.rows.take(self.shared, view.roots, ones, none, keep_graph=True).jacobian
        self.ranks.mean_([jacobian])
        return inner_products(jacobian, jacobian)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on exactly, besides both weightings."""
        groups = [method.state_dict() for method in self._methods[1:]]
        rows = [rows.how for rows in (self.rows, *self._extra_rows)]
        presence = {"reach": self._reach, "absent": self._absent, "met": self._met}
        return {"calls": self._calls, "reused": self._reused, **presence, "rows": rows, "groups": groups}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Counterpart of `state_dict`."""
        self._calls, self._reused = state["calls"], state["reused"]
        self._reach, self._absent, self._met = state["reach"], state["absent"], state["met"]
        for rows, how in zip((self.rows, *self._extra_rows), state["rows"], strict=True):
            rows.how = how
        for method, saved in zip(self._methods[1:], state["groups"], strict=True):
            method.load_state_dict(saved)

    def _divide(self, groups: Sequence[Sequence[nn.Parameter]]) -> None:
        """One method per group: they share options and random draws, not what they remember."""
        if not groups:
            return
        if sorted(id(p) for group in groups for p in group) != sorted(id(p) for p in self.shared):
            raise MtlError("groups: every shared parameter should be in exactly one group")
        if len(groups) == 1:
            return
        self._groups, self.shared = groups, [p for group in groups for p in group]
        method = self.gradient_weighting
        copies = [copy.deepcopy(method, {id(method.rng): method.rng}) for _ in groups[1:]]
        for duplicate in copies:
            duplicate.events = method.events  # counted together
        self._methods = [method, *copies]

    def _pull(self, scaled: Tensor, view: Roots) -> tuple[Weighted, Tensor, Tensor]:
        """Where the backward passes start, with d(sum of scaled) / d(start); its sum per task (K,); the losses (K,)
        times that, detached.

        Also fills the loss weighting's own `.grad`. This is a backward pass over K numbers: it stops at the losses,
        before the model.
        """
        own = self.loss_weighting.learnable()
        if view.samples is not None:
            roots: Sequence[Tensor] = view.samples
            found = torch.autograd.grad(scaled.sum(), [*roots, *own], retain_graph=True, allow_unused=True)
            pull = [torch.zeros_like(r) if c is None else c for r, c in zip(roots, found, strict=False)]
            factor = torch.stack([c.sum() for c in pull])
            weighted = torch.stack([c @ r.detach() for c, r in zip(pull, roots, strict=True)])
        else:
            roots = view.roots
            found = torch.autograd.grad(scaled.sum(), [view.losses, *own], allow_unused=True)
            factor = torch.zeros_like(view.losses) if found[0] is None else found[0]
            pull = list(factor.unbind())
            weighted = factor * view.losses.detach()
        gradients = list(found[len(found) - len(own) :])
        self._write(own, gradients)
        return Weighted(roots, pull), factor, weighted

    def _descend(self, scaled: Tensor, losses: Tensor) -> Tensor:
        """One backward pass of everything, where nothing acts on single tasks. Returns d(sum of scaled) / d(losses)."""
        losses.retain_grad()
        torch.autograd.backward([scaled.sum()])
        if self.ranks.world > 1:
            everything = (*self.loss_weighting.learnable(), *self.shared, *self._owned)
            self.ranks.mean_([p.grad for p in everything if p.grad is not None])
        return torch.zeros_like(losses) if losses.grad is None else losses.grad

    def _extra_jacobians(self, view: Roots, factor: Tensor) -> Sequence[Tensor]:
        """Jacobians (K, P) of further batches, of losses times the weights that the step's own batch led to."""
        anchor = self.last_shared if self.wrt == "last_shared" else self.shared
        none: list[list[Tensor]] = [[] for _ in factor]
        pull = factor.unbind()
        found = []
        for rows, roots in zip(self._extra_rows, view.extra_roots(len(self._extra_rows)), strict=True):
            found.append(rows.take(anchor, roots, pull, none, keep_graph=False).jacobian)
        self.ranks.mean_(found)
        return found

    def _push_weighted(self, weights: Tensor, trunk: Weighted, heads: Weighted) -> Tensor:
        """A backward pass for each group, with known weights (groups, K). Returns their mean (K,)."""
        alpha = weights.to(trunk.pull[0])
        mean = self._over_groups(alpha)
        weighted = trunk.times(mean)
        if self.gradient_weighting.heads == "weighted" and heads is trunk:
            heads = weighted
        if len(alpha) == 1:
            self._push(weighted, heads)
            return mean
        if self._owned:
            self._write(self._owned, heads.gradients(self._owned, keep_graph=True))
        for i, (own, group) in enumerate(zip(alpha, self._groups, strict=True)):
            self._write(group, trunk.times(own).gradients(group, keep_graph=i < len(alpha) - 1))
        return mean

    def _push(self, trunk: Weighted, heads: Weighted) -> None:
        """Weighted sum of the losses into `.grad`; heads may have weights of their own."""
        if trunk is heads or not self._owned:
            torch.autograd.backward(trunk.roots, trunk.pull)
            self.ranks.mean_([p.grad for p in (*self.shared, *self._owned) if p.grad is not None])
            return
        self._write(self._owned, heads.gradients(self._owned, keep_graph=True))
        if self.shared:
            self._write(self.shared, trunk.gradients(self.shared, keep_graph=False))

    def _combine(
        self, weighted: Tensor, trunk: Weighted, heads: Weighted | None, cut: Sequence[Tensor]
    ) -> Tensor | None:
        """Task gradients at the anchor -> one direction in `.grad`, and the heads' gradients beside it.

        `heads` is given when the heads learn from something else than the losses that the trunk sees. Returns the
        weights (K,) if there are any.
        """
        anchor: Sequence[Tensor] = self.shared if self.wrt == "params" else _with_gradient(cut)
        private_gradients: Sequence[Tensor | None] = ()
        if heads is not None and self._owned:
            private_gradients = heads.gradients(self._owned, keep_graph=True)
        along = [[] if heads is not None else parameters for parameters in self.private]
        alpha: Tensor | None
        if self.wrt == "params":
            taken = self.rows.take(anchor, *trunk, along, keep_graph=False)
            found = taken.along
            alpha, parts = self._decide(taken.jacobian, weighted, anchor)
            accumulate(self.shared, [part if hit else None for part, hit in zip(parts, taken.reached, strict=True)])
        else:
            method = self.gradient_weighting
            factors = find_factors(trunk.roots, anchor, method.reads)
            if factors is None:
                taken = self.rows.take(anchor, *trunk, along, keep_graph=True)
                found = taken.along
                alpha, parts = self._decide(taken.jacobian, weighted, anchor)
            else:
                found = factors.take(*trunk, self._owned if heads is None else [])
                if method.reads == "columns":
                    alpha, parts = None, factors.by_columns(lambda columns: method(columns, weighted))
                else:
                    self._reused = self._kept(self._solve(0, factors.gramian(), weighted)[None], weighted)
                    alpha = self._reused[0].to(weighted)
                    parts = factors.combine(alpha)
            backward_beside(self._owned, anchor, parts)  # those behind the cut have their own task's gradient already
            self.ranks.mean_([p.grad for p in self.shared if p.grad is not None])
        if heads is None:
            private_gradients = found
        if alpha is not None and self.gradient_weighting.heads == "weighted" and heads is None:
            sizes = [len(parameters) for parameters in self.private]
            scale = [a for a, size in zip(alpha, sizes, strict=True) for _ in range(size)]
            private_gradients = [None if g is None else a * g for a, g in zip(scale, private_gradients, strict=True)]
        self._write(self._owned, private_gradients)
        return alpha

    def _decide(
        self, jacobian: Tensor, weighted: Tensor, anchor: Sequence[Tensor]
    ) -> tuple[Tensor | None, Sequence[Tensor]]:
        """Jacobian (K, P) -> weights (K,) where the method has any, and the direction at each tensor of `anchor`."""
        if self.wrt == "params":
            self.ranks.mean_([jacobian])
        columns = self._by_group(jacobian)
        mean: Tensor | None = None
        if self.gradient_weighting.gives_weights():
            self._reused = self._all_weights(jacobian, jacobian, weighted)
            alpha = self._reused.to(jacobian)
            found = [a @ part for a, part in zip(alpha, columns, strict=True)]
            mean = self._over_groups(alpha)
        else:
            found = [direction(m, part, weighted) for m, part in zip(self._methods, columns, strict=True)]
        parts = torch.split(found[0] if len(found) == 1 else torch.cat(found), [t.numel() for t in anchor])
        return mean, [part.view_as(t).to(t.dtype) for part, t in zip(parts, anchor, strict=True)]

    def _all_weights(self, first: Tensor, second: Tensor, weighted: Tensor) -> Tensor:
        """Weights (groups, K) from two Jacobians (K, P), which are one and the same without further batches."""
        if self._groups:
            lengths = [torch.linalg.vector_norm(rows, torch.inf, dim=1) for rows in self._by_group(first)]
            self._reach = torch.stack(lengths).cpu() > 0
        found = []
        for i, (rows, columns) in enumerate(zip(self._by_group(first), self._by_group(second), strict=True)):
            if self._methods[i].reads != "gramian":
                found.append(self._methods[i](rows, weighted).detach())
            else:
                found.append(self._solve(i, inner_products(rows, columns), weighted))
        return self._kept(torch.stack(found), weighted)

    def _over_groups(self, alpha: Tensor) -> Tensor:
        """Mean (K,) of the weights (groups, K), for what belongs to no group: over the groups that a task reaches."""
        if self._reach is None:
            return alpha.mean(0)
        there = self._reach.to(alpha)
        reached = (alpha * there).sum(0) / there.sum(0).clamp(min=1)
        return torch.where(there.sum(0) > 0, reached, alpha.mean(0))

    def _by_group(self, jacobian: Tensor) -> Sequence[Tensor]:
        sizes = [sum(p.numel() for p in group) for group in self._groups]
        return torch.split(jacobian, sizes, dim=1) if sizes else (jacobian,)

    def _solve(self, group: int, gramian: Tensor, weighted: Tensor) -> Tensor:
        """Weights (K,) from the Gramian (K, K)."""
        method = self._methods[group]
        if self.wrt == "representation":  # every rank holds its own part of the batch, as `world` times its share
            self.ranks.mean_([gramian])
            gramian /= self.ranks.world
        gramian, weighted = gramian.cpu(), weighted.double().cpu()
        there = gramian.diagonal() > 0 if self._groups else (gramian.diagonal() > 0) | (weighted != 0)
        if method.minds_zeros and there.any() and not there.all():
            found = torch.zeros_like(weighted)
            found[there] = method(gramian[there][:, there], weighted[there]).detach()
        else:
            found = method(gramian, weighted).detach()
        return found

    def _kept(self, found: Tensor, weighted: Tensor) -> Tensor:
        """New weights (groups, K), mixed with the last ones, to be used again.

        A task without a loss, as without a label in the batch, has no part in them: it keeps what it had, and once it
        has a loss again, they are computed anew.
        """
        there = (weighted != 0).cpu()
        if self.smooth and self._reused is not None:
            last = self._reused.to(found)
            mixed = torch.where(self._met.to(found.device), self.smooth * last + (1 - self.smooth) * found, found)
            found = torch.where(there.to(found.device), mixed, last)
        self._met, self._absent = self._met | there, None if there.all() else ~there
        return found

    def _returns(self, weighted: Tensor) -> bool:
        """Whether a task has a loss that had none when the weights were computed."""
        return self._absent is not None and bool((weighted[self._absent.to(weighted.device)] != 0).any())

    def _write(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
        self.ranks.mean_([g for g in gradients if g is not None])
        accumulate(parameters, gradients)


def _with_gradient(cut: Sequence[Tensor]) -> list[Tensor]:
    anchor = [tensor for tensor in cut if tensor.requires_grad]
    if not anchor:
        raise MtlError(
            "wrt: representation needs a tensor that every path from shared parameters to the losses crosses; "
            "none was given that requires a gradient"
        )
    return anchor
