"""One update of OGPO, batched over states, chains and critics, against the same algorithm written as loops.

Both draw the same noise and must give the same loss. The first rival loops over states, chains and critics; the second
runs all states at once and loops over chains and critics. Then, where the time of ours goes.
"""

from __future__ import annotations

import copy
import sys
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.support import results
from benchmarks.support.plain_ogpo import PlainOgpo
from benchmarks.support.updates import add_rounds, measure, tell, tell_where
from finetune.common.chunk_policy import load_chunk_policy
from finetune.common.environments.registry import make_env
from finetune.common.experience import sources
from finetune.common.macro import MacroEnv
from finetune.ogpo.agent import OgpoLearner
from finetune.ogpo.config import small, variant
from models.folders import checkpoint_folder

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from finetune.common.experience import Batch

OURS, LOOPS, CHAINS = "batched", "a loop over states, chains and heads", "a loop over chains and heads"


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; see the module's docstring."""
    parser = results.parser("ogpo", str(__doc__))
    parser.add_argument("--policy", default="zoo:slot-clone", help="zoo:NAME or a checkpoint folder")
    parser.add_argument("--task", default="slot:shift=0.018", help="whose states fill the replay")
    add_rounds(parser)
    options = parser.parse_args(argv)
    if options.quick:
        options.rounds, options.updates = 1, 2
    torch.set_num_threads(1)
    screen, journal = results.console(), results.Journal.open("ogpo", options)
    results.print_machine(screen, journal.common)
    learner, batch = _learner(options)
    _compare(learner, batch)
    settings = f"{len(batch.states)} states, {learner.config.group} chains, {learner.config.heads} critics, one thread"
    tell(screen, journal, _measure(learner, batch, options), ours=OURS, settings=settings)
    tell_where(screen, journal, lambda number: learner.update(sources(2, number)), updates=options.updates)
    return 0


def _learner(options: argparse.Namespace) -> tuple[OgpoLearner, Batch]:
    """Return a learner whose replay the cloned policy filled, and a batch of it."""
    policy, network = load_chunk_policy(checkpoint_folder(options.policy))
    config = variant(small(), "ogpo")
    learner = OgpoLearner(config, policy, network, seed=options.seed)
    env = MacroEnv(make_env(options.task), execute=learner.execute)
    for episode in range(20):
        state, over = env.reset(seed=episode), False
        while not over:
            source = torch.Generator().manual_seed(len(learner.experience.replay))
            macro = env.step(learner.act(state[None], source, "collect").chunks[0])
            learner.keep(macro)
            state, over = macro.observations[-1], macro.over
    return learner, learner.experience.sample(sources(options.seed, 0).rows)


def _compare(learner: OgpoLearner, batch: Batch) -> None:
    """Raise when the contenders do not compute the same loss, a few updates away from the start."""
    for number in range(3):
        learner.update(sources(1, number))
    wanted = learner.policy_loss(batch, torch.Generator().manual_seed(0))[0].item()
    for at_once in (False, True):
        plain = PlainOgpo(learner, states_at_once=at_once)
        found = plain.policy_loss(batch.states, torch.Generator().manual_seed(0)).item()
        if abs(found - wanted) > 1e-5 + 1e-3 * abs(wanted):
            raise RuntimeError(f"policy_loss: {found} by loops, {wanted} by ours: not the same algorithm")


def _measure(learner: OgpoLearner, batch: Batch, options: argparse.Namespace) -> dict[str, list[float]]:
    """Return seconds an update of each contender, one sample a round."""
    loops, chains = (PlainOgpo(copy.deepcopy(learner), states_at_once=at_once) for at_once in (False, True))
    generator = torch.Generator().manual_seed(0)
    work: dict[str, tuple[Callable[[], Any], int]] = {
        OURS: (lambda: learner.update(sources(options.seed, 0)), options.updates),
        CHAINS: (lambda: chains.update(batch, generator), max(1, options.updates // 4)),
        LOOPS: (lambda: loops.update(batch, generator), 1),
    }
    return measure(work, rounds=options.rounds, seed=options.seed)


if __name__ == "__main__":
    sys.exit(main())
