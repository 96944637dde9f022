"""One update of TMRL, its critics as one network, against the same algorithm with a network for each critic.

Both draw the same noise and must give the same losses. The first rival runs one decision of the batch at a time; the
second runs the whole batch through each critic in turn. Then, where the time of ours goes.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np
import torch

from benchmarks.support import results
from benchmarks.support.plain_tmrl import PlainTmrl
from benchmarks.support.updates import add_rounds, measure, tell, tell_where
from finetune.common.decisions import Decisions
from finetune.tmrl.agent import TmrlAgent
from finetune.tmrl.config import AgentConfig
from models.policies.steered.choice import ChoiceSpace

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

OURS, ONE_BY_ONE, HEADS = "critics as one network", "a loop over decisions and critics", "a loop over critics"
_STATES, _CONTEXT = 10, 8


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; see the module's docstring."""
    parser = results.parser("tmrl", str(__doc__))
    parser.add_argument("--batch", type=int, default=256, help="decisions of an update")
    parser.add_argument("--hidden", type=int, default=256, help="width of actor and critics")
    add_rounds(parser)
    options = parser.parse_args(argv)
    if options.quick:
        options.rounds, options.updates, options.batch, options.hidden = 1, 2, 16, 32
    torch.set_num_threads(1)
    screen, journal = results.console(), results.Journal.open("tmrl", options)
    results.print_machine(screen, journal.common)
    agent, batch = _agent(options), _batch(options)
    compare(agent, batch)
    settings = f"{options.batch} decisions, {agent.config.critics} critics of width {options.hidden}, one thread"
    tell(screen, journal, _measure(agent, batch, options), ours=OURS, settings=settings)
    generator = torch.Generator().manual_seed(0)
    tell_where(screen, journal, lambda _: agent.update(batch, generator, actor=True), updates=options.updates)
    return 0


def compare(agent: TmrlAgent, batch: Decisions) -> None:
    """Raise when the contenders do not compute the same losses."""
    for one_by_one in (False, True):
        found = PlainTmrl(agent, decision_by_decision=one_by_one).update(batch, torch.Generator().manual_seed(0))
        again = TmrlAgent(agent.config, agent.space, agent.states, seed=0)
        for name, module in agent.modules.items():
            again.modules[name].load_state_dict(module.state_dict())
        facts = again.update(batch, torch.Generator().manual_seed(0), actor=True)
        wanted = facts["critic_loss"], facts["actor_loss"]
        if not np.allclose(found, wanted, rtol=1e-3, atol=1e-4):
            raise RuntimeError(f"losses: {found} by loops, {wanted} by ours: not the same algorithm")


def _agent(options: argparse.Namespace) -> TmrlAgent:
    config = AgentConfig(hidden=options.hidden)
    space = ChoiceSpace.of(rows=8, columns=2, context_size=_CONTEXT, **config.bounds)
    return TmrlAgent(config, space, _STATES, seed=options.seed)


def _batch(options: argparse.Namespace) -> Decisions:
    draw, size = np.random.default_rng(options.seed), options.batch
    return Decisions(
        states=draw.standard_normal((size, _STATES), np.float32),
        after=draw.standard_normal((size, _STATES), np.float32),
        choices=draw.uniform(-1, 1, (size, 3 + _CONTEXT)).astype(np.float32),
        rewards=draw.random(size, np.float32),
        done=(draw.random(size) < 0.1).astype(np.float32),
    )


def _measure(agent: TmrlAgent, batch: Decisions, options: argparse.Namespace) -> dict[str, list[float]]:
    """Return seconds an update of each contender, one sample a round."""
    one_by_one, heads = (PlainTmrl(agent, decision_by_decision=single) for single in (True, False))
    generator = torch.Generator().manual_seed(0)
    work: dict[str, tuple[Callable[[], object], int]] = {
        OURS: (lambda: agent.update(batch, generator, actor=True), options.updates),
        HEADS: (lambda: heads.update(batch, generator), options.updates),
        ONE_BY_ONE: (lambda: one_by_one.update(batch, generator), 1),
    }
    return measure(work, rounds=options.rounds, seed=options.seed)


if __name__ == "__main__":
    sys.exit(main())
