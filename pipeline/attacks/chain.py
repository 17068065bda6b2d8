"""The stages of the attacks that `AttackConfig.method` names."""

import math

from pipeline.attacks.external import ExternalAttack
from pipeline.attacks.external_stage import ExternalStage
from pipeline.attacks.line_search import (
    LineSearch,
    LineStart,
    Optimality,
    Record,
    ReferenceLine,
)
from pipeline.attacks.references import References
from pipeline.attacks.search import Stage
from pipeline.attacks.stages import FirstStep, NormDescent, Projections, RandomStart
from pipeline.config import LOW_COSINE, AttackConfig
from pipeline.errors import warn


def starts_with_deepfool(attack: AttackConfig) -> bool:
    """Whether images pass through DeepFool before the stages."""
    return not {"deepfool", "superdeepfool"}.isdisjoint(attack.methods)


def stages_of(attack: AttackConfig, references: References | None = None) -> list[Stage]:
    """The stages after DeepFool, in the order in which images pass through them.

    Args:
        attack: its method, norm and numbers of steps are used.
        references: reference images for the upper bound and the starts of descents; None: neither
            the bound nor the cosine is measured.

    Raises:
        UserError: an attack of another library cannot be imported, or does not take its options.
    """
    p = float(attack.norm)
    stages: list[Stage] = []
    for number, name in enumerate(attack.methods):
        if name == "deepfool":
            stages.append(Record(p, number))
        elif name == "superdeepfool":
            projects = attack.max_projections > 0
            projections: list[Stage] = [Projections(p, attack.max_projections)] if projects else []
            projections.append(LineSearch(p, number))
            stages += projections
            if projects:
                # Projections do not come near a smallest perturbation where the boundary is too
                # curved, or gradients are masked. There a descent follows.
                stages += _descent("ddn", attack, number, references, LOW_COSINE)
            for start in range(1, attack.restarts + 1):
                stages += [RandomStart(p, number, start), *projections]
        elif ":" in name:
            external = ExternalAttack(name, attack.options)
            if external.norm not in (None, p):
                warn(
                    f"evaluation.attack.method {name} minimises the norm p {external.norm:g}, and "
                    f"evaluation.attack.norm is {p:g}: its distances are not small ones"
                )
            stages.append(ExternalStage(external, p, number))
        else:
            stages += _descent(name, attack, number, references)
    if references is not None:
        # DeepFool alone reports the paper's number, whatever the bound says.
        takes_part = attack.methods != ["deepfool"]
        stages += [ReferenceLine(p, references, takes_part=takes_part), Optimality(p)]
    return stages


def _descent(
    kind: str,
    attack: AttackConfig,
    number: int,
    references: References | None,
    below_cosine: float = math.inf,
) -> list[Stage]:
    """A descent, ddn or fmn, that counts as the method of this number."""
    p = float(attack.norm)
    return [
        LineStart(p, references, below_cosine=below_cosine),
        FirstStep(attack),
        NormDescent(kind, p, attack.descent_steps),
        LineSearch(p, number),
    ]
