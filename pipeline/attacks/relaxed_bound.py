"""The largest ball in which linear bounds of the logits keep the predicted class.

In: a net with ReLUs, one image. Out: `RelaxedNet.certified_radius`. See
`pipeline.models.linear_relaxation` for the bounds. The inputs of ReLUs are bounded in the order of
the net, each operation with the bounds of those before it.

Rounding. Slacks and norms are enlarged by `NORM_MARGIN`; the inputs of ReLUs have a margin of
`VALUE_MARGIN` of the largest value at their operation, the logits of the largest logit.
"""

import torch
from torch import Tensor

from pipeline.attacks.norms import per_sample_norm
from pipeline.models.attack_view import AttackView
from pipeline.models.linear_relaxation import Relaxation, RelaxKinks

# Factors of the dtype's eps: 7.6e-6 and 1.9e-6 in fp32. On trained nets (MNIST MLP and LeNet) the
# errors of norms were at most 2.6 eps, those of logits 3.5 eps of the largest logit.
NORM_MARGIN = 64
VALUE_MARGIN = 16
_ROWS_AT_ONCE = 64  # fixed: the batch size decides which kernels run, and so the last bits
_NUM_TRIALS = 5  # with 12 the bound is 0.4 % larger on the MNIST MLP
_FIRST_TRIAL = 0.3  # of the largest radius; about what is reached on the MNIST MLP


class RelaxedNet:
    """The net at one image, with linear bounds of its values in a ball around the image."""

    def __init__(self, view: AttackView, image: Tensor, row: Tensor, q: float) -> None:
        """Run the net once.

        Args:
            view: the net; batches are not padded.
            image: (1, C, H, W).
            row: (1,) int64, the image's number in its batch.
            q: dual to the exponent of the norm.
        """
        copies = image.expand(_ROWS_AT_ONCE, *image.shape[1:])
        with RelaxKinks() as relaxed:
            self._forward = view.forward_with_grad(copies, row.expand(_ROWS_AT_ONCE))
        self._groups, self._q = relaxed.groups, q
        logits = self._forward.logits[0].detach()
        clean, classes = logits.argmax(), torch.arange(len(logits), device=logits.device)
        eye = torch.eye(len(logits), dtype=logits.dtype, device=logits.device)
        self._differences = (eye[clean] - eye)[classes != clean]  # (K - 1, K)
        eps = torch.finfo(logits.dtype).eps
        self._enlarge, self._margin = 1.0 + NORM_MARGIN * eps, VALUE_MARGIN * eps
        self._logits = logits
        # Before the first operation with kinks the net is affine: one gradient serves all radii.
        first = self._groups[0] if self._groups else []
        self._first_norms = [self._distances(r.values, _unit_rows(r), [], 1.0) for r in first]

    def certified_radius(self, largest: float) -> float:
        """A radius below ``largest`` in whose ball the class does not change; 0: none was found.

        By a few trials of false position, so it is not the largest such radius.
        """
        low, high = 0.0, largest
        at_low, at_high = self.smallest_difference(0.0), None
        if not at_low > 0:
            return 0.0
        radius = _FIRST_TRIAL * largest
        for _ in range(_NUM_TRIALS):
            difference = self.smallest_difference(radius)
            if difference > 0:
                low, at_low = radius, difference
            else:  # also where it is not a number
                high, at_high = radius, difference
            share = 0.5
            if low > 0 and at_high is not None and at_high > -float("inf"):
                share = min(max(at_low / (at_low - at_high), 0.15), 0.85)
            radius = low + share * (high - low)
        return low

    def smallest_difference(self, radius: float) -> float:
        """A lower bound, in the ball of a radius, of the predicted class's logit minus any other;
        NaN or minus infinity where numbers overflow."""
        for number, group in enumerate(self._groups):
            earlier = [relaxation for before in self._groups[:number] for relaxation in before]
            for position, relaxation in enumerate(group):
                if number == 0:
                    below = above = self._first_norms[position] * radius
                else:
                    rows = _unit_rows(relaxation)
                    below = self._distances(relaxation.values, rows, earlier, radius)
                    above = self._distances(relaxation.values, -rows, earlier, radius)
                margin = self._margin * relaxation.scale
                center = relaxation.values[0].detach()
                # A value that does not depend on the image, as in a pool's differences, is exact.
                relaxation.set_bounds(
                    center - torch.where(below == 0, 0.0, below + margin),
                    center + torch.where(above == 0, 0.0, above + margin),
                )
        everything = [relaxation for group in self._groups for relaxation in group]
        down = self._distances(self._forward.logits, self._differences, everything, radius)
        lowest = (self._differences @ self._logits - down).amin()
        return float(lowest - self._margin * self._logits.abs().amax())

    def _distances(
        self, values: Tensor, rows: Tensor, kinks: list[Relaxation], radius: float
    ) -> Tensor:
        """How far linear functions of values of the net can fall below their values at the image.

        Args:
            values: (B, M), with a graph.
            rows: (R, M) coefficients of the functions.
            kinks: the relaxations between the image and the values.
            radius: of the ball.

        Returns:
            (R,), rounded up.
        """
        parts = []
        for part in rows.split(_ROWS_AT_ONCE):
            padded = torch.nn.functional.pad(part, (0, 0, 0, _ROWS_AT_ONCE - len(part)))
            (inputs,) = torch.autograd.grad(
                values, self._forward.inputs, padded, retain_graph=True, allow_unused=True
            )
            distance = values.new_zeros(_ROWS_AT_ONCE)
            if inputs is not None:  # else the values are constant
                distance = radius * per_sample_norm(inputs, self._q)
            for relaxation in kinks:
                distance = distance + relaxation.take_slack()
            parts.append(distance[: len(part)].detach())
        return torch.cat(parts) * self._enlarge


def _unit_rows(relaxation: Relaxation) -> Tensor:
    """One row of coefficients (M, M) for each value."""
    values = relaxation.values
    return torch.eye(values.shape[1], dtype=values.dtype, device=values.device)
