"""An attack of foolbox or adversarial-library as a stage of the search."""

from dataclasses import dataclass, replace

import torch

from pipeline.attacks.external import ExternalAttack
from pipeline.attacks.norms import per_sample_norm
from pipeline.attacks.search import Advanced, SearchState, Stage, clipped
from pipeline.models.attack_view import AttackView


@dataclass(frozen=True)
class ExternalStage(Stage):
    """Runs the whole attack at once, and records its distance."""

    attack: ExternalAttack
    p: float
    method: int  # number of the method in `SearchState.distances`

    def start(self, state: SearchState) -> Advanced:
        """Start from the clean image."""
        return Advanced(state.restarted(), torch.zeros_like(state.flipped))

    def advance(self, view: AttackView, state: SearchState) -> Advanced:
        """The attack; all images leave."""
        result = self.attack.perturb(view, state.images, state.label)
        delta = clipped(view, state.images, result.delta)
        norm = per_sample_norm(delta, self.p)
        state = replace(
            state,
            delta=delta,
            best=delta,
            best_norm=norm.where(result.flipped, torch.inf),
            best_class=result.prediction,
            # Without any perturbation, the image is left out of rho instead of counting as 0.
            no_gradient=state.no_gradient | (~result.flipped & (state.smallest_norm == 0)),
            num_queries=state.num_queries + result.num_forwards + result.num_gradients,
        )
        return Advanced(state, torch.ones_like(state.flipped))

    def finish(self, state: SearchState) -> SearchState:
        """Record the distance of the method."""
        return state.recorded(self.method, self.p)
