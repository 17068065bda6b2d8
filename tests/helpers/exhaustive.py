"""The exact smallest perturbation of a small two-layer ReLU net, by enumeration of its regions.

For tests of attacks and of bounds. In the polytope of one activation pattern the net is affine, so
the smallest perturbation that ends there is a projection onto a polyhedron: a least-distance
problem (p = 2; Lawson and Hanson, Solving Least Squares Problems, chapter 23, by NNLS) or a linear
program (p = inf). The smallest over all patterns and classes is the distance.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linprog, nnls
from torch import Tensor, nn

MAX_HIDDEN = 12


class ExactDistance(NamedTuple):
    """The smallest perturbation that brings the image onto the boundary of another class."""

    distance: float  # its p-norm; inf if the net predicts one class everywhere
    delta: Tensor  # of the image's shape, fp64; at image + delta two logits are equal
    target: int  # the class whose logit reaches the predicted one's; -1 without any


class _TwoLayers(NamedTuple):
    """Logits v @ relu(w @ x + b) + c."""

    w: np.ndarray  # (H, D)
    b: np.ndarray  # (H,)
    v: np.ndarray  # (K, H)
    c: np.ndarray  # (K,)


def exact_distance(net: nn.Module, image: Tensor, p: float = 2.0) -> ExactDistance:
    """The distance of an image to the nearest point where another class's logit is as large.

    A net of H hidden units has 2^H patterns; those behind a hyperplane that is farther away than
    the best point so far are skipped. With H of 8 to 10, D of 10 to 20 and K of 3 to 5 an image
    takes 2 to 20 ms (p = 2) or 40 to 300 ms (p = inf) on one core (AMD EPYC, Zen 4).

    Args:
        net: nn.Sequential of Flatten (optional), Linear, ReLU, Linear, with at most `MAX_HIDDEN`
            hidden units.
        image: one image, (C, H, W) or (1, C, H, W).
        p: of the norm, 2 or inf.
    """
    layers = _layers_of(net)
    x = image.detach().double().flatten().numpy()
    a = layers.w @ x + layers.b
    clean = int((layers.v @ np.maximum(a, 0) + layers.c).argmax())
    best = ExactDistance(math.inf, torch.zeros_like(image, dtype=torch.float64), -1)
    for limit, on in _patterns(layers, a, p):
        if limit >= best.distance:
            break  # patterns come in the order of these limits
        slopes = (layers.v * on) @ layers.w  # (K, D)
        values = (layers.v * on) @ a + layers.c
        signs = np.where(on, 1.0, -1.0)
        for target in range(len(values)):
            if target == clean:
                continue
            rows = np.vstack([signs[:, None] * layers.w, slopes[target] - slopes[clean]])
            least = np.append(-signs * a, values[clean] - values[target])
            delta = _project(rows, least, p)
            if delta is not None and np.linalg.norm(delta, p) < best.distance:
                shaped = torch.from_numpy(delta).reshape(image.shape)
                best = ExactDistance(float(np.linalg.norm(delta, p)), shaped, target)
    return best


def _layers_of(net: nn.Module) -> _TwoLayers:
    layers = [layer for layer in net.children() if not isinstance(layer, nn.Flatten)]
    kinds = [type(layer) for layer in layers]
    assert kinds == [nn.Linear, nn.ReLU, nn.Linear], f"not a two-layer ReLU net: {kinds}"
    arrays = [parameter.detach().double().numpy() for parameter in net.parameters()]
    assert len(arrays) == 4, "a layer without a bias"
    assert len(arrays[0]) <= MAX_HIDDEN, f"more than {MAX_HIDDEN} hidden units"
    return _TwoLayers(*arrays)


def _patterns(layers: _TwoLayers, a: np.ndarray, p: float) -> list[tuple[float, np.ndarray]]:
    """(distance below which the pattern cannot be reached, (H,) bool which units are on)."""
    dual = np.linalg.norm(layers.w, 1 if math.isinf(p) else 2, axis=1)
    hyperplanes = np.abs(a) / np.where(dual > 0, dual, 1e-300)
    patterns = [np.array(on) for on in itertools.product([False, True], repeat=len(a))]
    limits = [float(np.max(hyperplanes, where=on != (a > 0), initial=0.0)) for on in patterns]
    order = np.argsort(limits, kind="stable")
    return [(limits[number], patterns[number]) for number in order]


def _project(rows: np.ndarray, least: np.ndarray, p: float) -> np.ndarray | None:
    """The r (D,) of smallest p-norm with rows @ r >= least (M,); None without one."""
    sizes = np.linalg.norm(rows, axis=1)
    if np.any(least[sizes == 0] > 0):
        return None
    rows, least = rows[sizes > 0] / sizes[sizes > 0, None], least[sizes > 0] / sizes[sizes > 0]
    if np.all(least <= 0):
        return np.zeros(rows.shape[1])
    if math.isinf(p):
        return _project_inf(rows, least)
    scale = np.abs(least).max()
    system = np.vstack([rows.T, least / scale])
    goal = np.append(np.zeros(rows.shape[1]), 1.0)
    residual = system @ nnls(system, goal, maxiter=1000)[0] - goal
    if residual[-1] > -1e-12:
        return None
    r = -scale * residual[:-1] / residual[-1]
    return r if np.all(rows @ r >= least - 1e-8 * scale) else None


def _project_inf(rows: np.ndarray, least: np.ndarray) -> np.ndarray | None:
    """By a linear program in (r, t): smallest t with -t <= r <= t."""
    dimension = rows.shape[1]
    identity, ones = np.eye(dimension), np.ones((dimension, 1))
    constraints = np.vstack(
        [
            np.hstack([-rows, np.zeros((len(rows), 1))]),
            np.hstack([identity, -ones]),
            np.hstack([-identity, -ones]),
        ]
    )
    limits = np.concatenate([-least, np.zeros(2 * dimension)])
    cost = np.append(np.zeros(dimension), 1.0)
    bounds = [(None, None)] * dimension + [(0, None)]
    solution = linprog(cost, constraints, limits, bounds=bounds, method="highs")
    return solution.x[:-1] if solution.success else None
