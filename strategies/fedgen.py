"""FedGen: a server-side generator of embeddings regularizes local training."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fedkd.errors import require
from fedkd.federation.client import Client
from fedkd.federation.server import Server
from fedkd.losses.cross_entropy import class_cross_entropy, cross_entropy
from fedkd.losses.diversity import diversity, noise_distances
from fedkd.losses.kl import kl_divergence
from fedkd.models.ensemble import stacked_head_logits
from fedkd.seed import Seed
from fedkd.strategy import Strategy
from fedkd.tensor_ops import one_hot
from fedkd.training.batch import Batch, Batches
from fedkd.training.functional_model import FunctionalModel, call_with, snapshot, submodule_tensors
from fedkd.training.loop import fit
from fedkd.training.optimizers import OptimizerFactory, scale_lr
from fedkd.types import Generated, Metrics, State, Target, Task, Tensors, Update


@dataclass(kw_only=True)
class FedGen(Strategy):
    """Client: ``CE(z, y) + a_r B_G/B CE(h(G(y~)), y~) + b_r KL(softmax(h(G(y))) || softmax(z))``.

    Generator: ``sum_k W_k CE(h_k(G(y)), y) + eta L_div``.

    Server: ``w <- sum_k (n_k / n) w_k``.

    G is the generator: it maps noise and a label to an embedding. h is the head of the local model, and h_k that of client k. The client's
    third term is the latent divergence. Each local step uses B examples and B_G drawn labels y~. ``a_r = max(min_coefficient, alpha
    coefficient_decay^(r-1))`` in round r, and b_r is the same with beta. W_k is the weight of client k's head, as ``weighting`` sets it.
    The diversity term is ``L_div = exp(-mean_ij(mean|G_i - G_j| mean (e_i - e_j)^2))``, where G_i is the embedding made from noise e_i.
    alpha = beta = 0 is FedAvg.

    ``strategy=fedgen`` has the settings of the public code, ``strategy=fedgen_paper`` those of the paper's text. Each difference between
    the two that changes numbers is a parameter.

    Source:
        Zhu, Hong, Zhou: Data-free knowledge distillation for heterogeneous federated learning, ICML 2021, Algorithm 1, equations 4 and 5.
        Public code: zhuangdizhu/FedGen @ dd5807c.

    Args:
        generator: Makes the generator, ``(task, embedding_size) -> module(noise, y)``.
        generator_optimizer: Makes its optimizer, ``parameters -> optimizer``. The optimizer's state is part of the run's state.
        generator_lr_decay: Factor of the generator's learning rate per round, in (0, 1].
        generator_steps: Optimizer steps of the generator per round, >= 0.
        generator_batch_size: Labels per step on the server, > 1.
        client_batch_size: Generated embeddings B_G per local step, > 0. B_G / B scales alpha, where B is ``batch_size``.
        alpha: Weight of the loss on generated embeddings, >= 0.
        beta: Weight of the latent divergence, >= 0. 0 is the paper's equation 5.
        coefficient_decay: Factor of alpha and beta per round, in (0, 1].
        min_coefficient: Lower bound of the decayed alpha and beta, >= 0.
        num_regularized_steps: Local steps per round with the two extra terms, >= 0. null means all steps.
        regularize_first_round: Use the extra terms in the first round too, when the generator is untrained.
        eta: Weight of the diversity term, >= 0.
        weighting: Weights of the clients' heads. ``per_sample``: the client's share of each label. ``scalar``: the mean of these shares
            over the batch, as in the public code, where it results from tensor broadcasting. ``none``: equal weights. ``examples``: by
            number of examples.
        teacher: What the generator learns from. ``heads`` are the heads of the round's clients. ``global`` is the head of the global model
            alone, as in FL-bench.
        ensemble_loss: ``sum_of_losses`` of the heads (public code) or ``loss_of_mean`` logits (equation 4).
        noise: ``uniform`` in [0, 1) (public code) or ``normal`` (paper).
        server_labels: Labels for the generator's training, drawn ``uniform`` over those of this round or by ``counts``.
        client_labels: Labels that clients draw, ``uniform`` over those reported so far or by the last round's ``counts``.
        client_generator: Mode of the generator on clients, ``eval`` or ``train``. In ``train`` mode each batch is normalized by its own
            statistics, as in re-implementations of FedGen.
        fresh_optimizer: Reset the generator's optimizer in every round, as in HtFLlib.

    Deviations:
        - From the public code: from the second round on, a label is drawn only if some client has reported it. In the first round all
          labels that clients hold are drawn, as in the public code.
        - From the public code: ``min_coefficient`` applies only to a coefficient > 0, so 0 switches a term off.
        - With ``shared_layers=head`` only the last layer is shared, as in the paper's Table 4. The public code has an option for this, but
          the option has no effect.
    """

    targets: ClassVar[tuple[Target, ...]] = ("label",)
    any_shared_layers: ClassVar[bool] = False
    client_summary: ClassVar[str] = "generated embeddings, latent divergence"
    server_summary: ClassVar[str] = "mean of models, then training of a generator of embeddings on the heads"
    broadcast_parts: ClassVar[tuple[str, ...]] = ("model", "generator", "labels")
    per_example_draws: ClassVar[tuple[str, ...]] = ("latent",)

    generator: Callable[..., nn.Module]
    generator_optimizer: OptimizerFactory
    generator_lr_decay: float
    generator_steps: int
    generator_batch_size: int
    client_batch_size: int
    alpha: float
    beta: float
    coefficient_decay: float
    min_coefficient: float
    num_regularized_steps: int | None
    regularize_first_round: bool
    eta: float
    weighting: Literal["per_sample", "scalar", "none", "examples"]
    teacher: Literal["heads", "global"]
    ensemble_loss: Literal["sum_of_losses", "loss_of_mean"]
    noise: Literal["uniform", "normal"]
    server_labels: Literal["uniform", "counts"]
    client_labels: Literal["uniform", "counts"]
    client_generator: Literal["eval", "train"]
    fresh_optimizer: bool

    @property
    def secure_aggregation(self) -> bool:  # type: ignore[override]  # a class variable of other strategies
        """Whether sums of what clients send are enough.

        The mean logit of linear heads is the logit of the mean head, so the paper's loss needs no single head. The public code's loss does.
        """
        return self.teacher == "global" or self.weighting == "none" and self.ensemble_loss == "loss_of_mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("alpha", "beta", "min_coefficient", "eta", "generator_steps"):
            require(getattr(self, name) >= 0, name, "must be >= 0 (0 switches it off)", getattr(self, name))
        for name in ("coefficient_decay", "generator_lr_decay"):
            require(0 < getattr(self, name) <= 1, name, "must be in (0, 1] (1 is no decay)", getattr(self, name))
        require(self.generator_batch_size > 1, "generator_batch_size", "must be > 1 (BatchNorm needs two)", self.generator_batch_size)
        require(self.client_batch_size > 0, "client_batch_size", "must be > 0 (alpha=0 switches the term off)", self.client_batch_size)
        kind = getattr(getattr(self.generator, "func", self.generator), "output_kind", "embeddings")
        require(kind == "embeddings", "generator", "must make embeddings (feature_mlp)", kind)
        steps = self.num_regularized_steps
        require(steps is None or steps >= 0, "num_regularized_steps", "must be >= 0, or null for all", steps)

    # ------------------------------------------------------------------------------------------- client side
    def prepare_batches(
        self, client: Client, batches: Batches, broadcast: State, client_state: State, server_round: int
    ) -> dict[str, Tensor]:
        """Labels, generated embeddings, and the coefficients of the two extra terms, for all steps."""
        steps, size = batches.y.shape
        module = cached_generator(self.generator, client.task, client.model.embedding_size)
        module = module.to(client.device, client.dtype)
        chances = broadcast["labels"]["probabilities"].cpu().expand(steps, -1)
        y = torch.multinomial(chances, self.client_batch_size, True, generator=(client.seed / "labels").torch()).to(client.device)
        with torch.no_grad():  # the generator does not change within a round, so one pass makes all embeddings
            generated, latent = (
                self.embed(
                    module, broadcast["generator"], self.draw_noise(client.seed / name, labels, module.noise_size, client.dtype), labels
                )
                for name, labels in (("noise", y), ("latent", batches.y))
            )
        active = torch.arange(steps, device=client.device) < (steps if self.num_regularized_steps is None else self.num_regularized_steps)
        active = active.to(client.dtype) * float(self.regularize_first_round or server_round > 1)
        share = self.client_batch_size / client.batch_size
        return {
            "generated_y": y,
            "generated": generated.view(steps, self.client_batch_size, -1),
            "latent": latent.view(steps, size, -1),
            "alpha": active * share * self.coefficient(self.alpha, server_round),
            "beta": active * self.coefficient(self.beta, server_round),
        }

    def embed(self, module: nn.Module, tensors: Tensors, noise: Tensor, y: Tensor) -> Tensor:  # [S*B, noise_size], [S, B] -> [S*B, D]
        """Generated embeddings for every step's labels. In train mode the generator's running statistics are not changed."""
        if self.client_generator == "eval":
            return FunctionalModel(module).at(tensors)(noise, y.flatten())
        require(y.shape[1] > 1, "client_generator", "must be eval where batches are of one example (BatchNorm needs two)", "train")
        scratch = {key: value.clone() for key, value in tensors.items()}
        steps = zip(noise.view(*y.shape, -1), y, strict=True)
        return torch.cat([call_with(module, scratch, *one) for one in steps])

    def loss(self, model: FunctionalModel, batch: Batch, broadcast: State, client_state: State) -> tuple[Tensor, Metrics]:
        """The client's equation. Also returns label counts and the two extra terms, unweighted."""
        logits = model(batch.x).logits
        generated = cross_entropy(model.head(batch.generated), batch.generated_y).mean()
        latent = kl_divergence(model.head(batch.latent).detach(), logits).mean()
        value = cross_entropy(logits, batch.y).mean() + batch.alpha * generated + batch.beta * latent
        return value, {"labels": one_hot(batch.y, logits.shape[-1]).sum(0), "generated_loss": generated, "latent_divergence": latent}

    def client_update(
        self, client: Client, trained: Tensors, metric_sums: Metrics, broadcast: State, client_state: State
    ) -> tuple[State, State]:
        """Send the model and the label counts of the round."""
        sent, kept = super().client_update(client, trained, metric_sums, broadcast, client_state)
        return {**sent, "labels": {"counts": metric_sums["labels"]}}, kept

    # ------------------------------------------------------------------------------------------- server side
    def init_server(self, server: Server) -> State:
        """The model, a new generator, uniform probabilities of the labels that clients hold, and label counts of 0."""
        with (server.seed / "generator").globally():
            module = cached_generator.__wrapped__(self.generator, server.task, server.model.embedding_size)
        classes = server.task.num_classes
        present = server.task.present
        uniform = torch.zeros(classes, dtype=server.dtype).index_fill(0, present, 1 / len(present)).to(server.device)
        return {
            **super().init_server(server),
            "generator": snapshot(module.to(server.device, server.dtype)),
            "labels": {"probabilities": uniform},
            "seen": {"counts": torch.zeros(classes, dtype=torch.int64, device=server.device)},
        }

    def aggregate(self, server: Server, state: State, updates: Sequence[Update], server_round: int) -> tuple[State, Metrics]:
        """Average the models and update the label probabilities."""
        after, metrics = super().aggregate(server, state, updates, server_round)
        counts = torch.stack([u.state["labels"]["counts"] for u in updates])  # [K, C]
        seen = state["seen"]["counts"] + counts.sum(0)
        reported = seen if self.client_labels == "uniform" else counts.sum(0)
        labels = {"probabilities": label_probabilities(reported, self.client_labels, server.dtype)}
        return {**after, "labels": labels, "seen": {"counts": seen}}, metrics

    def server_training(self, server: Server, state: State, updates: Sequence[Update], server_round: int) -> tuple[State, Metrics]:
        """Train the generator on the heads of this round's clients."""
        if self.generator_steps == 0:
            return state, {}
        heads = [submodule_tensors((state if self.teacher == "global" else u.state)["model"], "head") for u in updates]
        counts, sizes = torch.stack([u.state["labels"]["counts"] for u in updates]), [u.num_examples for u in updates]
        trained, metric_sums = self.train_generator(server, state, heads, counts, server_round, sizes)
        return {**state, **trained}, {name: value / self.generator_steps for name, value in metric_sums.items()}

    def server_steps(self, server: Server, updates: Sequence[Update], server_round: int) -> int:
        """The steps of the generator."""
        return self.generator_steps

    def train_generator(
        self, server: Server, state: State, heads: Sequence[Tensors], counts: Tensor, server_round: int, sizes: Sequence[int] | None = None
    ) -> tuple[State, Metrics]:
        """Train the generator for one round.

        ``heads`` are the clients' heads after local training, ``counts`` [K, C] their label counts and ``sizes`` [K] their numbers of
        examples. Returns the generator with its optimizer's state, and the sums of its metrics.
        """
        module = cached_generator(self.generator, server.task, server.model.embedding_size).to(server.device, server.dtype)
        chances = label_probabilities(counts.sum(0), self.server_labels, torch.float64).cpu().expand(self.generator_steps, -1)
        y = torch.multinomial(chances, self.generator_batch_size, True, generator=(server.seed / "labels").torch()).to(server.device)
        noise = self.draw_noise(server.seed / "noise", y, module.noise_size, server.dtype).view(*y.shape, -1)
        shares = (1 + counts.to(server.dtype)) / (1 + counts.to(server.dtype)).sum(0)  # counts start at 1 in the public code
        if self.weighting == "examples":
            examples = torch.tensor(sizes, dtype=server.dtype, device=server.device)
            shares = (examples / examples.sum())[:, None].expand_as(shares)
        stacked = {key: torch.stack([head[key] for head in heads]) for key in heads[0]}
        optimizer = scale_lr(self.generator_optimizer, self.generator_lr_decay ** (server_round - 1))
        fitted = fit(
            module, state["generator"], Batches(y, drawn={"noise": noise, "distances": noise_distances(noise)}),
            partial(self.generator_loss, head=server.model.head), optimizer, broadcast={"heads": stacked, "labels": {"shares": shares}},
            optimizer_state=None if self.fresh_optimizer else state.get("generator_optimizer"),
        )  # fmt: skip
        metric_sums = {f"generator_{name}": value for name, value in fitted.metric_sums.items()}
        return {"generator": fitted.tensors, "generator_optimizer": fitted.optimizer}, metric_sums

    def generator_loss(
        self, model: FunctionalModel, batch: Batch, broadcast: State, client_state: State, *, head: nn.Module
    ) -> tuple[Tensor, Metrics]:
        """The generator's equation. With ``loss_of_mean`` the first term is ``CE(sum_k W_k h_k(G(y)), y)``."""
        z = model(batch.noise, batch.y)
        logits = stacked_head_logits(head, broadcast["heads"], z)  # [K, B, C]
        weights = self.head_weights(broadcast["labels"]["shares"][:, batch.y])  # [K, B]
        if self.ensemble_loss == "sum_of_losses":
            teacher = (weights * class_cross_entropy(logits, batch.y.expand(len(logits), -1))).sum(0).mean()
        else:
            teacher = cross_entropy((weights[..., None] * logits).sum(0), batch.y).mean()
        spread = diversity(batch.distances, z)
        return teacher + self.eta * spread, {"teacher_loss": teacher, "diversity_loss": spread}

    def head_weights(self, shares: Tensor) -> Tensor:  # [K, B] -> [K, B]
        """Weights of the heads for each label of a batch. They sum to 1 over clients."""
        if self.weighting in ("per_sample", "examples"):
            return shares
        if self.weighting == "scalar":
            return shares.mean(1, keepdim=True).expand_as(shares)
        return torch.full_like(shares, 1 / len(shares))

    def generate(self, server: Server, state: State, y: Tensor, seed: Seed) -> Generated:
        """Embeddings of the current generator for labels ``y``."""
        module = cached_generator(self.generator, server.task, server.model.embedding_size).to(server.device, server.dtype)
        noise = self.draw_noise(seed, y, module.noise_size, server.dtype)
        return Generated(FunctionalModel(module).at(state["generator"])(noise, y), y, are_embeddings=True)

    # ------------------------------------------------------------------------------------------- both sides
    def coefficient(self, initial: float, server_round: int) -> float:
        """``max(min_coefficient, initial coefficient_decay^(r-1))``, or 0 where ``initial`` is 0."""
        return max(self.min_coefficient, initial * self.coefficient_decay ** (server_round - 1)) if initial > 0 else 0.0

    def draw_noise(self, seed: Seed, y: Tensor, size: int, dtype: torch.dtype) -> Tensor:
        """One noise vector for every entry of ``y``, flattened: [y.numel(), size]."""
        draw = torch.rand if self.noise == "uniform" else torch.randn
        return draw(y.numel(), size, generator=seed.torch(), dtype=dtype).to(y.device)


@lru_cache(maxsize=8)
def cached_generator(generator: Callable[..., nn.Module], task: Task, embedding_size: int) -> Any:
    """A cached generator module whose tensors are always overwritten before use."""
    return generator(task, embedding_size)


def label_probabilities(counts: Tensor, kind: str, dtype: torch.dtype) -> Tensor:  # [C] -> [C]
    """Label probabilities: ``uniform`` over the labels with a count, or proportional to ``counts``."""
    weights = (counts > 0).to(dtype) if kind == "uniform" else counts.to(dtype)
    return weights / weights.sum()
