"""The protocol of an evaluation: what its numbers mean, and which net they are of.

In: the options of an evaluation; a net. Out: what is stored beside every number, and the identity
of an evaluation.
"""

import hashlib
from typing import Any

import torch
from torch import nn

from pipeline.attacks.norms import norm_name
from pipeline.config import DataConfig, EvaluationConfig, RuntimeConfig
from pipeline.data import mean_image

# Names and values in stored protocols are those of the first version, so that results of all
# versions can be compared and merged; some options have been renamed since.

# Options of the data section that decide, beside the mean, what the network's input is: their
# names in the protocol and in DataConfig.
_INPUT_OPTIONS = {
    "crop": "crop_size",
    "resize": "resize_size",
    "interpolation": "interpolation",
    "channels": "channels",
    "std": "std",
}
_TARGET_CLASS = {"reselect": "every", "fixed": "first"}
LINEARISED_AT = {
    "current": "x + sum of steps, without overshoot",
    "overshot": "the point where the class was tested, with overshoot",
}

SPACES = {
    "input": "network input, after normalisation",
    "pixels": "pixels in [0, 1], normalisation inside the model",
}


def evaluation_protocol(
    evaluation: EvaluationConfig, runtime: RuntimeConfig, num_classes: int
) -> dict[str, Any]:
    """What the numbers of an evaluation mean; stored with the results."""
    attack, fgs = evaluation.attack, evaluation.fgs
    p = norm_name(float(attack.norm))
    clipped = ", perturbed images cut to it" if evaluation.clip else ""
    return {
        "measure": f"mean of ||dx||_{p} / ||x||_{p}, DeepFool from the predicted class; over all "
        "samples, never flipped ones with their perturbation so far, but those without a gradient",
        "norm": p,
        "num_candidates": min(attack.num_candidates, num_classes),
        "max_iterations": attack.max_iterations,
        "overshoot": attack.overshoot,
        "classes": _TARGET_CLASS[attack.target_class],
        "visit": "all"
        if attack.candidate_search == "exhaustive"
        else f"lazy, safety {attack.pruning_factor:g}",
        **(
            {"direction": "gradient of the cross-entropy"}
            if attack.step_direction == "loss_gradient"
            else {}
        ),
        "linearised_at": LINEARISED_AT[attack.linearize_at],
        "space": SPACES[evaluation.space] + clipped,
        "precision": "tf32" if runtime.tf32 else "fp32",
        "fgs": {"eps": fgs.measured, "reference": fgs.reference, "search": fgs.search}
        if fgs.asked
        else None,
    }


def preprocessing_of(data: DataConfig) -> dict[str, Any]:
    """The preprocessing of the network's input; independent of where files are stored."""
    return {
        "mean": mean_image.identity(data),
        **{name: getattr(data, option) for name, option in _INPUT_OPTIONS.items()},
    }


def weights_hash(net: nn.Module) -> str:
    """Short hash of a net's weights and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(net.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
