"""The equations once more, in NumPy and float64, written from the papers and not from the code under test.

Every function takes plain arrays. Gradients are central differences of these functions (:func:`gradient`), so that a wrong
sign, a missing mean or a forgotten detach shows in the comparison with autograd.

References:
    Hinton et al. 2015: divergence at a temperature. Li et al. 2020: FedProx, equation 2. Jeong et al. 2018: federated
    distillation. Zhu et al. 2021: FedGen, equations 4 and 5, and its public code. Mao et al. 2019: diversity. Lee et al. 2022:
    FedNTD. Li et al. 2021: MOON. Karimireddy et al. 2020: SCAFFOLD, Algorithm 1, option II.
"""

from collections.abc import Callable, Mapping

import numpy as np

Array = np.ndarray
Arrays = dict[str, Array]


def gradient(function: Callable[[Arrays], float], at: Mapping[str, Array], step: float = 1e-6) -> Arrays:
    """Central differences of a scalar ``function`` of named arrays, one entry after the other."""
    slopes = {}
    for name, value in at.items():
        slope = np.zeros_like(value)
        for index in np.ndindex(value.shape):
            ends = []
            for sign in (1, -1):
                moved = value.copy()
                moved[index] += sign * step
                ends.append(function({**at, name: moved}))
            slope[index] = (ends[0] - ends[1]) / (2 * step)
        slopes[name] = slope
    return slopes


def softmax(logits: Array) -> Array:
    """``e^z_c / sum_d e^z_d`` over the last axis."""
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def cross_entropy(logits: Array, y: Array) -> Array:  # [B, C], [B] -> [B]
    """``-ln p_y``."""
    return np.array([-np.log(softmax(row)[label]) for row, label in zip(logits, y)])


def kl(teacher: Array, student: Array, temperature: float = 1.0) -> Array:  # [B, C], [B, C] -> [B]
    """``T^2 sum_c p_c ln(p_c / q_c)`` with p the teacher's and q the student's softened probabilities."""
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    return temperature**2 * (p * np.log(p / q)).sum(-1)


def diversity(noise: Array, output: Array) -> float:  # [B, Z], [B, D]
    """``exp(-mean over all pairs of |o_i - o_j|_1 / D * |n_i - n_j|^2 / Z)``."""
    products = [np.abs(o - p).mean() * ((n - m) ** 2).mean() for o, n in zip(output, noise) for p, m in zip(output, noise)]
    return float(np.exp(-np.mean(products)))


def linear(weights: Mapping[str, Array], name: str, x: Array) -> Array:
    """``x W^T + b``."""
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def mlp(weights: Mapping[str, Array], x: Array) -> Array:
    """Logits of a perceptron with one hidden layer of rectified units."""
    return linear(weights, "head", np.maximum(linear(weights, "stages.0.1", x.reshape(len(x), -1)), 0))


def generator(weights: Mapping[str, Array], noise: Array, y: Array, num_classes: int) -> Array:
    """Noise and one-hot label through linear, BatchNorm with the batch's own statistics, rectifier, linear."""
    hidden = linear(weights, "hidden.0", np.concatenate([noise, np.eye(num_classes)[y]], axis=1))
    normal = (hidden - hidden.mean(0)) / np.sqrt(hidden.var(0) + 1e-5)
    return linear(weights, "output", np.maximum(normal * weights["hidden.1.weight"] + weights["hidden.1.bias"], 0))


def fedprox(weights: Mapping[str, Array], broadcast: Mapping[str, Array], x: Array, y: Array, mu: float, weight_decay: float) -> float:
    """``CE + mu/2 |w - w_global|^2 + weight_decay/2 |w|^2``."""
    distance = sum(((weights[name] - broadcast[name]) ** 2).sum() for name in weights)
    norm = sum((value**2).sum() for value in weights.values())
    return cross_entropy(mlp(weights, x), y).mean() + mu / 2 * distance + weight_decay / 2 * norm


def fedgen_client(
    weights: Mapping[str, Array], frozen: Mapping[str, Array], x: Array, y: Array, generated: Array, generated_y: Array, latent: Array,
    alpha: float, beta: float,
) -> float:  # fmt: skip
    """``CE + alpha CE(h(G(y~)), y~) + beta KL(h(G(y)) || h(f(x)))``, the divergence's teacher with ``frozen`` weights."""
    logits = mlp(weights, x)
    generated_loss = cross_entropy(linear(weights, "head", generated), generated_y).mean()
    return cross_entropy(logits, y).mean() + alpha * generated_loss + beta * kl(linear(frozen, "head", latent), logits).mean()


def fedgen_generator(
    weights: Mapping[str, Array], heads: list[Mapping[str, Array]], counts: Array, noise: Array, y: Array, eta: float,
    weighting: str, ensemble_loss: str,
) -> float:  # fmt: skip
    """The server's loss for heads that saw ``counts`` [K, C] of each label, to which the public code adds one."""
    num_heads, num_classes = counts.shape
    z = generator(weights, noise, y, num_classes)
    share = (counts + 1) / (counts + 1).sum(0)
    total, mean_logits = 0.0, np.zeros((len(y), num_classes))
    for k, head in enumerate(heads):
        logits = z @ head["weight"].T + head["bias"]
        if weighting == "per_sample":
            weight = share[k][y]
        elif weighting == "scalar":
            weight = np.full(len(y), np.mean(share[k][y]))
        else:
            weight = np.full(len(y), 1 / num_heads)
        total += np.mean(weight * cross_entropy(logits, y))
        mean_logits += weight[:, None] * logits
    if ensemble_loss == "loss_of_mean":
        total = cross_entropy(mean_logits, y).mean()
    return total + eta * diversity(noise, z)


def feddistill(weights: Mapping[str, Array], table: Array, x: Array, y: Array, gamma: float) -> float:
    """``CE + gamma KL(softmax(L[y]) || softmax(z))``."""
    logits = mlp(weights, x)
    return cross_entropy(logits, y).mean() + gamma * kl(table[y], logits).mean()


def logit_table(logits: Array, y: Array, num_classes: int, initial_count: int) -> Array:  # [N, C], [N] -> [C, C]
    """One client's mean logits of each true class; a class never seen has zeros."""
    table = np.zeros((num_classes, num_classes))
    for label in range(num_classes):
        mine = logits[y == label]
        if len(mine) + initial_count:
            table[label] = mine.sum(0) / (len(mine) + initial_count)
    return table


def decayed(initial: float, decay: float, floor: float, server_round: int) -> float:
    """A coefficient in a round counted from one: ``initial * decay^(r-1)`` and not below the floor, 0 if it begins there."""
    value = initial
    for _ in range(server_round - 1):
        value *= decay
    return 0.0 if initial == 0 else max(value, floor)


def not_true(teacher: Array, student: Array, y: Array, temperature: float) -> Array:  # [B, C], [B, C], [B] -> [B]
    """Divergence at a temperature over the classes that are not the label."""
    keep = np.arange(teacher.shape[1]) != y[:, None]
    left, right = (logits[keep].reshape(len(y), -1) for logits in (teacher, student))
    return kl(left, right, temperature)


def contrastive(z: Array, near: Array, far: Array, temperature: float) -> Array:  # [B, D] x 3 -> [B]
    """``-ln(e^(cos near / T) / (e^(cos near / T) + e^(cos far / T)))``."""

    def cosine(left: Array, right: Array) -> Array:
        return (left * right).sum(-1) / (np.linalg.norm(left, axis=-1) * np.linalg.norm(right, axis=-1))

    positive, negative = (np.exp(cosine(z, other) / temperature) for other in (near, far))
    return -np.log(positive / (positive + negative))


def scaffold(
    curvatures: Array, minima: Array, rounds: int, steps: int, lr: float, momentum: float = 0.0, correct: bool = True
) -> tuple[float, Array, float]:
    """SCAFFOLD on ``a_i / 2 (x - b_i)^2``, everybody in every round: x, every c_i, and c."""
    x, c, own = 0.0, 0.0, np.zeros(len(curvatures))
    reach = lr * sum(sum(momentum**j for j in range(i + 1)) for i in range(steps))  # of a gradient of one, steps times
    for _ in range(rounds):
        ends = []
        for a, b, mine in zip(curvatures, minima, own):
            y, velocity = x, 0.0
            for _ in range(steps):
                velocity = momentum * velocity + a * (y - b) + (c - mine if correct else 0.0)
                y -= lr * velocity
            ends.append(y)
        new = own - c + (x - np.array(ends)) / reach
        c, x, own = c + (new - own).mean(), float(np.mean(ends)), new
    return x, own, c


def prototype_distance(embeddings: Array, y: Array, prototypes: Array, known: Array) -> Array:  # [B, D], [B], [C, D], [C] -> [B]
    """Mean squared distance to the prototype of the label, where there is one."""
    return np.array([((z - prototypes[label]) ** 2).mean() if known[label] else 0.0 for z, label in zip(embeddings, y)])
