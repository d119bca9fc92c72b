"""The equations once more, in NumPy and float64, written from the papers and not from the code under test.

Every function takes plain arrays. Gradients are central differences of these functions (:func:`gradient`), so that a wrong
sign, a missing mean or a forgotten detach shows in the comparison with autograd.

References:
    Hinton et al. 2015: divergence at a temperature. Li et al. 2020: FedProx, equation 2. Jeong et al. 2018: federated
    distillation. Zhu et al. 2021: FedGen, equations 4 and 5, and its public code. Mao et al. 2019: diversity. Lee et al. 2022:
    FedNTD. Li et al. 2021: MOON. Karimireddy et al. 2020: SCAFFOLD, Algorithm 1, option II. Lin et al. 2020: FedDF. Li and Wang 2019:
    FedMD. Zhang et al. 2022, CVPR: FedFTG. Zhang et al. 2022, NeurIPS: DENSE. Romero et al. 2015: hints. Zagoruyko and Komodakis 2017:
    attention. Tung and Mori 2019: similarity-preserving. Passalis et al. 2018 and 2020: probabilistic transfer, retrieval. Zhao et al.
    2022: decoupled distillation. Nguyen et al. 2021: alignment. Wang et al. 2021: gradient filters. Torkkola 2003: quadratic information.
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


def ensemble(logits: Array, average: str) -> Array:  # [K, B, C] -> [B, C]
    """Probabilities of an ensemble: of the mean ``logits``, or the mean of ``probabilities``."""
    return softmax(logits.mean(0)) if average == "logits" else softmax(logits).mean(0)


def divergence(p: Array, student: Array) -> Array:  # [B, C], [B, C] -> [B]
    """``sum_c p_c ln(p_c / q_c)``, p probabilities, q those of the student's logits."""
    return (p * np.log(p / softmax(student))).sum(-1)


def digest(weights: Mapping[str, Array], x: Array, consensus: Array) -> float:
    """FedMD's first phase: the mean absolute difference of logits, over examples and classes."""
    return float(np.abs(mlp(weights, x) - consensus).sum() / consensus.size)


def convolution(x: Array, kernel: Array, bias: Array, stride: int) -> Array:  # [B, I, H, W], [O, I, 3, 3], [O] -> [B, O, h, w]
    """3x3, padded by one."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    height, width = (-(-size // stride) for size in x.shape[2:])
    out = np.zeros((len(x), len(kernel), height, width)) + bias[:, None, None]
    for i in range(3):
        for j in range(3):
            seen = padded[:, :, i : i + stride * height : stride, j : j + stride * width : stride][:, :, :height, :width]
            out += np.einsum("bihw,oi->bohw", seen, kernel[:, :, i, j])
    return out


def fedgen_cnn(weights: Mapping[str, Array], x: Array) -> tuple[Array, dict[str, Array]]:
    """Logits of convolutions of stride 2 with BatchNorm by its kept statistics and rectifier, then two linear layers; and what enters
    each BatchNorm."""
    entering = {}
    for stage in range(sum(name.endswith("running_mean") for name in weights)):
        x = convolution(x, weights[f"stages.{stage}.0.weight"], weights[f"stages.{stage}.0.bias"], 2)
        norm = f"stages.{stage}.1"
        entering[norm] = x
        mean, variance, scale, shift = (
            weights[f"{norm}.{key}"][:, None, None] for key in ("running_mean", "running_var", "weight", "bias")
        )
        x = np.maximum((x - mean) / np.sqrt(variance + 1e-5) * scale + shift, 0)
    return linear(weights, "head", linear(weights, "embed.1", x.reshape(len(x), -1))), entering


def dense_synthesis(
    x: Array, y: Array, teachers: list[Mapping[str, Array]], student: Mapping[str, Array], bn: float, oh: float, adv: float
) -> tuple[float, dict[str, float]]:
    """DENSE's loss of a batch of images, and its three terms before their weights; networks are :func:`fedgen_cnn`."""
    said, far = [], 0.0
    for weights in teachers:
        logits, entering = fedgen_cnn(weights, x)
        said.append(logits)
        for name, value in entering.items():
            channels = np.moveaxis(value, 1, 0).reshape(value.shape[1], -1)  # [C, B * H * W]
            far += np.sqrt(((channels.mean(1) - weights[f"{name}.running_mean"]) ** 2).sum())
            far += np.sqrt(((((channels.T - channels.mean(1)) ** 2).mean(0) - weights[f"{name}.running_var"]) ** 2).sum())
    mean, own = np.mean(said, axis=0), fedgen_cnn(student, x)[0]
    unlike = [kl(m[None], o[None])[0] if m.argmax() != o.argmax() else 0.0 for m, o in zip(mean, own)]
    terms = {"bn": far, "oh": cross_entropy(mean, y).mean(), "adv": -np.mean(unlike)}
    return bn * terms["bn"] + oh * terms["oh"] + adv * terms["adv"], terms


def fedftg_generator(
    x: Array, noise: Array, y: Array, student: Mapping[str, Array], teacher: Mapping[str, Array], fixed: Array | None, weight: Array,
    num_clients: int, cls: float, dis: float, discrepancy: str, weighting: str,
) -> float:  # fmt: skip
    """FedFTG's loss of images x for one client; networks are :func:`mlp`.

    ``weight`` [B] is the client's share of each image's label; ``fixed`` the teacher's logits where the discrepancy does not move them.
    """
    student_logits, teacher_logits = mlp(student, x), mlp(teacher, x)
    held = teacher_logits if fixed is None else fixed
    apart = np.abs(student_logits - held).mean(1) if discrepancy == "l1" else kl(held, student_logits)
    label = cross_entropy(teacher_logits, y)
    label = (weight * label).mean() if weighting == "per_sample" else weight.mean() * label.mean()
    return -(weight * apart).mean() + cls * label + dis * diversity(noise, x.reshape(len(x), -1)) / num_clients


def fedftg_student(
    weights: Mapping[str, Array], x: Array, y: Array, teachers: list[Mapping[str, Array]], counts: Array, mean_over_classes: bool
) -> float:  # counts [K, C]
    """Cross-entropy with the teachers' probabilities, each weighted by its share of the label; over B, or over B and C."""
    target = sum((count[y] / counts[:, y].sum(0))[:, None] * softmax(mlp(teacher, x)) for count, teacher in zip(counts, teachers))
    every = -target * np.log(softmax(mlp(weights, x)))
    return float(every.mean() if mean_over_classes else every.sum() / len(y))
