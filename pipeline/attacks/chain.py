"""The stages of the attacks that `AttackConfig.method` names."""

from torch import Tensor

from pipeline.attacks.external import ExternalAttack
from pipeline.attacks.external_stage import ExternalStage
from pipeline.attacks.line_search import LineSearch, Optimality, Record, ReferenceLine
from pipeline.attacks.search import LOW_COSINE, Stage
from pipeline.attacks.stages import FirstStep, NormDescent, Projections, RandomStart
from pipeline.config import AttackConfig


def starts_with_deepfool(attack: AttackConfig) -> bool:
    """Whether images pass through DeepFool before the stages."""
    return not {"deepfool", "superdeepfool"}.isdisjoint(attack.methods)


def stages_of(
    attack: AttackConfig, references: Tensor | None = None, classes: Tensor | None = None
) -> list[Stage]:
    """The stages after DeepFool, in the order in which images pass through them.

    Args:
        attack: its method, norm and numbers of steps are used.
        references: (R, C, H, W) reference images for the upper bound; None: neither the bound nor
            the cosine is measured.
        classes: (R,) classes that the net sees in them.

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
                first_step = FirstStep(attack, references, LOW_COSINE)
                stages += [first_step, *_descent("ddn", attack, number)]
            for start in range(1, attack.restarts + 1):
                stages += [RandomStart(p, number, start), *projections]
        elif ":" in name:
            stages.append(ExternalStage(ExternalAttack(name, attack.options), p, number))
        else:
            stages += [FirstStep(attack, references), *_descent(name, attack, number)]
    if references is not None and classes is not None:
        # DeepFool alone reports the paper's number, whatever the bound says.
        takes_part = attack.methods != ["deepfool"]
        stages += [ReferenceLine(p, references, classes, takes_part), Optimality(p)]
    return stages


def _descent(kind: str, attack: AttackConfig, number: int) -> list[Stage]:
    """A descent, ddn or fmn, that counts as the method of this number."""
    p = float(attack.norm)
    return [NormDescent(kind, p, attack.descent_steps), LineSearch(p, number)]
