"""Independent derivations of the losses and metrics of distillation, in NumPy and float64."""

from collections.abc import Callable

import numpy as np

from tests.oracles import Array, not_true, softmax


def hint(teacher: Array, student: Array) -> Array:  # [B, ...] x 2 -> [B]
    """Mean squared difference of each example's entries."""
    return np.array([np.mean((t - s) ** 2) for t, s in zip(teacher, student)])


def attention_transfer(teacher: Array, student: Array, power: float = 2) -> Array:  # [B, channels, H, W] x 2 -> [B]
    """Mean squared difference of maps of length one, the larger features averaged over whole patches to the smaller ones' size."""

    def shrunk(image: Array, height: int, width: int) -> Array:
        rows, columns = image.shape[1] // height, image.shape[2] // width
        patches = [[image[:, i * rows : (i + 1) * rows, j * columns : (j + 1) * columns] for j in range(width)] for i in range(height)]
        return np.array([[patch.mean((1, 2)) for patch in row] for row in patches]).transpose(2, 0, 1)

    losses = []
    for pair in zip(teacher, student):
        height, width = (min(image.shape[axis] for image in pair) for axis in (1, 2))
        t, s = (sum(np.abs(channel) ** power for channel in shrunk(image, height, width)).ravel() for image in pair)
        losses.append(np.mean((t / np.linalg.norm(t) - s / np.linalg.norm(s)) ** 2))
    return np.array(losses)


def similarity_preserving(teacher: Array, student: Array) -> float:  # [B, ...] x 2
    """``1/B^2 ||G_t - G_s||_F^2`` of Gram matrices with rows of length one."""
    grams = []
    for features in (teacher, student):
        rows = features.reshape(len(features), -1)
        products = np.array([[left @ right for right in rows] for left in rows])
        grams.append(products / np.sqrt((products**2).sum(1))[:, None])
    return np.linalg.norm(grams[0] - grams[1], "fro") ** 2 / len(teacher) ** 2


def kernel(name: str, x: Array, width: float | None = None) -> Array:  # [B, D] -> [B, B]
    """K of every pair; ``width`` holds the adaptive kernel's still."""
    distance = np.array([[np.sqrt(((a - b) ** 2).sum() + 1e-6) for b in x] for a in x])
    if name == "cosine":
        lengths = np.linalg.norm(x, axis=1) + 1e-6
        return (x @ x.T / lengths / lengths[:, None] + 1) / 2
    if name == "adaptive_rbf":
        return np.exp(-distance / (distance.mean() if width is None else width))
    return {"student_t": 1 / (1 + distance), "rbf": np.exp(-distance), "cauchy": 1 / (1 + distance**2)}[name]


def pairwise(teacher: Array, student: Array, name: str, divergence: str, diagonal: bool, width: float | None = None) -> float:
    """The mean over all pairs of a divergence of conditional probabilities; ``width`` is of the student's adaptive kernel."""
    p, q = kernel(name, teacher), kernel(name, student, width)
    total = 0.0
    for i in range(len(p)):
        others = [j for j in range(len(p)) if diagonal or j != i]
        a, b = (matrix[i, others] / matrix[i, others].sum() for matrix in (p, q))
        total += {
            "jeffreys": (a - b) @ (np.log(a) - np.log(b)), "kl": a @ np.log(a / b), "absolute": np.abs(a - b).sum(),
            "squared": ((a - b) ** 2).sum(),
        }[divergence]  # fmt: skip
    return total / len(p) ** 2


def cosine_transfer(teacher: Array, student: Array) -> float:
    """``mean_ij p_ij ln((p_ij + 1e-7) / (q_ij + 1e-7))`` of cosines brought to 0..1 and rows of sum one."""
    probabilities = []
    for x in (teacher, student):
        rows = x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-7)
        similar = (rows @ rows.T + 1) / 2
        probabilities.append(similar / similar.sum(1, keepdims=True))
    p, q = probabilities
    return float(np.mean(p * np.log((p + 1e-7) / (q + 1e-7))))


def decoupled(teacher: Array, student: Array, y: Array, temperature: float) -> tuple[Array, Array]:  # -> [B], [B]
    """Divergences of "the label or another", and among the others, times ``T^2``."""
    target = []
    for t, s, label in zip(softmax(teacher / temperature), softmax(student / temperature), y):
        target.append(t[label] * np.log(t[label] / s[label]) + (1 - t[label]) * np.log((1 - t[label]) / (1 - s[label])))
    return temperature**2 * np.array(target), not_true(teacher, student, y, temperature)


def hsic1(k: Array, other: Array) -> float:  # [n, n] x 2
    """The unbiased estimate as it is printed, diagonals set to zero."""
    n, ones = len(k), np.ones(len(k))
    k, other = (matrix - np.diag(np.diag(matrix)) for matrix in (k, other))
    both = np.trace(k @ other) + (ones @ k @ ones) * (ones @ other @ ones) / ((n - 1) * (n - 2)) - 2 / (n - 2) * ones @ k @ other @ ones
    return both / (n * (n - 3))


def cka(x: Array, y: Array, estimate: Callable[[Array, Array], float]) -> float:
    """``estimate(K, L) / sqrt(estimate(K, K) estimate(L, L))`` of linear kernels."""
    k, other = x @ x.T, y @ y.T
    return estimate(k, other) / np.sqrt(estimate(k, k) * estimate(other, other))


def hsic0(k: Array, other: Array) -> float:
    """The biased estimate: ``tr(K H L H)``, H what takes the mean away."""
    centre = np.eye(len(k)) - 1 / len(k)
    return np.trace(k @ centre @ other @ centre)


def filter_mask(name: str, teacher: Array, student: Array, y: Array, temperature: float, threshold: float) -> Array:  # -> [B, C]
    """Which entries of a gradient are kept, one after the other."""
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    kept = np.ones(p.shape, dtype=bool)
    for i, c in np.ndindex(p.shape):
        behind, own = q[i, y[i]] < p[i, y[i]], c == y[i]
        kept[i, c] = {
            "none": True, "sample_conf": behind, "target_only": behind if own else True, "nontarget_only": True if own else behind,
            "sym": abs(p[i, c] - q[i, c]) > threshold, "wrong_teacher": teacher[i].argmax() == y[i],
        }[name]  # fmt: skip
    return kept


def quadratic_information(k: Array, y: Array) -> float:  # [N, N], [N]
    """``V_in + V_all - 2 V_between`` by loops over classes."""
    n, within, between, everywhere = len(k), 0.0, 0.0, 0.0
    for label in set(y):
        mine = np.flatnonzero(y == label)
        within += k[np.ix_(mine, mine)].sum()
        everywhere += (len(mine) / n) ** 2 * k.sum()
        between += len(mine) / n * k[mine].sum()
    return (within + everywhere - 2 * between) / n**2


def mutual_information(cells: Array, y: Array) -> float:  # [N], [N]
    """``H(T) + H(Y) - H(T, Y)`` of what was counted, in nats."""

    def entropy(values: list) -> float:
        shares = np.array([values.count(value) / len(values) for value in set(values)])
        return -(shares * np.log(shares)).sum()

    t, labels = [tuple(np.atleast_1d(cell)) for cell in cells], list(y)
    return entropy(t) + entropy(labels) - entropy(list(zip(t, labels)))


def retrieval(
    database: Array, labels: Array, queries: Array, query_labels: Array, similarity: str, interp: str, first: int, batch_size: int
) -> tuple[float, float, float]:
    """Mean average precision, precision among the first, and of the nearest, rank by rank."""
    rows = []
    for begin in range(0, len(queries), batch_size):
        batch = range(begin, min(begin + batch_size, len(queries)))
        for query in batch:
            near = []
            for known in database:
                far = np.linalg.norm(known - queries[query])
                lengths = np.linalg.norm(known) * np.linalg.norm(queries[query])
                near.append(-far if similarity == "euclidean" else known @ queries[query] / lengths if lengths else 0.0)
            hits = (labels == query_labels[query])[np.argsort(-np.array(near), kind="stable")]
            plain = [hits[: rank + 1].mean() for rank in range(len(hits))]
            recall = np.array([hits[: rank + 1].sum() / max(hits.sum(), 1) for rank in range(len(hits))])
            horizon = len(hits) if interp == "full" else min(len(batch), len(hits))
            curve = [max(plain[rank:horizon], default=plain[rank]) for rank in range(len(hits))]
            average = np.mean([curve[int(np.abs(recall - level / 10).argmin())] for level in range(11)])
            shown = plain if interp == "full" else curve
            rows.append((average, shown[min(first, len(hits)) - 1], shown[0]))
    return tuple(np.mean(rows, axis=0).tolist())
