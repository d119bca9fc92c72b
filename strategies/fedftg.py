"""FedFTG: the server fine-tunes the mean model on generated images on which it disagrees with the clients."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fedkd.distillation.image_synthesis import stack_models, unstack_models
from fedkd.errors import require
from fedkd.federation.client import Client
from fedkd.federation.server import Server
from fedkd.losses.cross_entropy import cross_entropy
from fedkd.losses.diversity import diversity, noise_distances
from fedkd.losses.kl import kl_divergence
from fedkd.seed import Seed
from fedkd.server_distillation import ServerDistillation
from fedkd.training.batch import Batch, Batches
from fedkd.training.functional_model import FunctionalModel, snapshot
from fedkd.training.loop import fit
from fedkd.training.optimizers import OptimizerFactory, scale_lr
from fedkd.types import Generated, Metrics, State, Task, Tensors, Update

DrawInputs = Callable[[str, int], tuple[Tensor, Tensor]]
"""``(purpose, steps) -> (labels [S, B], noise [S, B, noise_size])``."""


@dataclass(kw_only=True)
class FedFTG(ServerDistillation):
    """Client: ``CE(z, y)``.

    Generator: ``-mean(a_k d(z_w, z_k)) + cls a_k CE(z_k, y) + dis L_div / K``, for one client k per step.

    Server: ``CE(sum_k a_k softmax(z_k), z_w)`` on x = G(noise, y), starting from ``w <- sum_k (n_k / n) w_k``.

    z_w and z_k are the logits of the global model and of client k. ``a_k`` is client k's share of the round's examples with label y, and d
    the discrepancy. Labels y are drawn in proportion to the round's label counts. L_div is FedGen's diversity term. iterations = 0 is
    FedAvg.

    Source:
        Zhang, Shen, Ding, Tao, Duan: Fine-tuning global model via data-free knowledge distillation for non-IID federated learning, CVPR
            2022. The shipped values follow the public code.
        Public code: ZhangLin-PKU/FedFTG @ 1e6347c.

    Args:
        generator: ``task -> module(noise, y)`` that makes images.
        generator_optimizer: ``parameters -> optimizer``. Its state is part of the run's state.
        iterations: Alternations of generator and model training per round, >= 0.
        generator_steps: Generator steps per iteration, each over all clients in turn, > 0.
        student_steps: Model steps per iteration, > 0.
        batch_size: Images per step, > 1.
        student_optimizer: ``parameters -> optimizer`` of the model.
        student_lr_decay: Factor of its learning rate per round, in (0, 1].
        cls: Weight of the labels' term, >= 0.
        dis: Weight of the diversity term, >= 0.
        discrepancy: ``l1`` is the mean absolute difference of logits (public code), ``kl`` is ``KL(softmax(z_k) || softmax(z_w))`` (paper).
            The generator's gradient passes through the global model alone.
        weighting: Weight of the labels' term by each label's share (``per_sample``) or by the mean share of the batch (``scalar``, public
            code).
        mean_over_classes: Divide the model's loss by the number of classes, as the public code does.

    Deviations:
        - From the public code: clients' gradients are not clipped.
        - From the public code: the generator's optimizer keeps its state over rounds at a constant learning rate. The public code creates
          it anew each round, with a learning rate that decays by 0.998 per round.
        - From the public code: the server uses batches of 128 and no weight decay. The public code uses batches of 50 and a weight decay of
          0.001.
        - From the public code: labels and noise are drawn anew for every step. The public code uses one batch for all steps of an
          iteration, with labels in exact proportions.
        - From the public code: the generator joins noise and label in one linear layer and ends in a sigmoid. The public code has a layer
          for each, ends in tanh, and has another BatchNorm.
        - As in the public code, both networks are in eval mode while the generator trains. The model trains on images made in eval mode.
        - BatchNorm statistics must be averaged, because the teachers need them.
    """

    server_summary: ClassVar[str] = "mean of models, then distillation of the ensemble on hard generated images"

    generator: Callable[..., nn.Module]
    generator_optimizer: OptimizerFactory
    iterations: int
    generator_steps: int
    student_steps: int
    batch_size: int
    student_optimizer: OptimizerFactory
    student_lr_decay: float
    cls: float
    dis: float
    discrepancy: Literal["l1", "kl"]
    weighting: Literal["per_sample", "scalar"]
    mean_over_classes: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("iterations", "cls", "dis"):
            require(getattr(self, name) >= 0, name, "must be >= 0 (0 switches it off)", getattr(self, name))
        for name, least in (("generator_steps", 0), ("student_steps", 0), ("batch_size", 1)):
            require(getattr(self, name) > least, name, f"must be > {least}", getattr(self, name))
        require(0 < self.student_lr_decay <= 1, "student_lr_decay", "must be in (0, 1] (1 is no decay)", self.student_lr_decay)
        self.require_image_generator(self.generator)

    @property
    def model_heterogeneity(self) -> Literal["none", "same_embedding_size", "any"]:
        """``none``: a step of the generator chooses its client by number from stacked models."""
        return "none"

    # ------------------------------------------------------------------------------------------- client side
    def client_update(
        self, client: Client, trained: Tensors, metric_sums: Metrics, broadcast: State, client_state: State
    ) -> tuple[State, State]:
        """Send the model and the label counts of the client's data."""
        sent, kept = super().client_update(client, trained, metric_sums, broadcast, client_state)
        return {**sent, "labels": {"counts": client.data.y.bincount(minlength=client.task.num_classes)}}, kept

    # ------------------------------------------------------------------------------------------- server side
    def init_server(self, server: Server) -> State:
        """The model and a new generator."""
        with (server.seed / "generator").globally():
            module = self.generator(server.task)
        return {**super().init_server(server), "generator": snapshot(module.to(server.device, server.dtype))}

    def aggregate(self, server: Server, state: State, updates: Sequence[Update], server_round: int) -> tuple[State, Metrics]:
        """Average the models, then train generator and model in turn."""
        after, metrics = super().aggregate(server, state, updates, server_round)
        mean = after["model"]
        counts = torch.stack([u.state["labels"]["counts"] for u in updates]).to(server.dtype)  # [K, C]
        fixed = {"teachers": stack_models([u.state["model"] for u in updates]), "labels": {"shares": counts / counts.sum(0).clamp(min=1)}}
        after, student_optimizer = {**after, "average": mean}, None
        means: Metrics = {}
        for iteration in range(self.iterations):
            draw = partial(self.draw_inputs, server, counts.sum(0), iteration)
            after, more = self.train_generator(server, after, fixed, draw)
            after, student_optimizer, loss = self.train_model(server, after, fixed, draw, student_optimizer, server_round)
            for name, value in {**more, "distillation_loss": loss}.items():
                means[name] = means.get(name, 0) + value / self.iterations
        return after, {**metrics, **means}

    def server_steps(self, server: Server, updates: Sequence[Update], server_round: int) -> int:
        """All steps of generator and model."""
        return self.iterations * (self.generator_steps * len(updates) + self.student_steps)

    def draw_inputs(self, server: Server, counts: Tensor, iteration: int, purpose: str, steps: int) -> tuple[Tensor, Tensor]:
        """Labels [S, B] in proportion to ``counts``, and noise [S, B, Z]."""
        seed = server.seed / "iteration" / iteration / purpose
        chances = (counts / counts.sum()).double().cpu().expand(steps, -1)
        y = torch.multinomial(chances, self.batch_size, True, generator=(seed / "labels").torch())
        size = cached_generator(self.generator, server.task).noise_size
        noise = torch.randn(steps, self.batch_size, size, generator=(seed / "noise").torch(), dtype=server.dtype)
        return y.to(server.device), noise.to(server.device)

    def train_generator(self, server: Server, state: State, fixed: State, draw: DrawInputs) -> tuple[State, Metrics]:
        """Train the generator for one iteration: ``generator_steps`` passes with one step per client."""
        clients = len(fixed["labels"]["shares"])
        steps = self.generator_steps * clients
        y, noise = draw("generator", steps)
        place = torch.arange(clients, device=server.device).repeat(self.generator_steps)
        module = cached_generator(self.generator, server.task).to(server.device, server.dtype)
        fitted = fit(
            module, state["generator"],
            Batches(y, None, None, server.dtype, {"noise": noise, "distances": noise_distances(noise), "place": place}),
            partial(self.generator_loss, network=server.model), self.generator_optimizer, broadcast={**fixed, "student": state["model"]},
            optimizer_state=state.get("generator_optimizer"),
        )  # fmt: skip
        means = {f"generator_{name}": value / steps for name, value in fitted.metric_sums.items()}
        return {**state, "generator": fitted.tensors, "generator_optimizer": fitted.optimizer}, means

    def generator_loss(
        self, model: FunctionalModel, batch: Batch, broadcast: State, client_state: State, *, network: nn.Module
    ) -> tuple[Tensor, Metrics]:
        """The generator's equation for the client of this step (``batch.place``)."""
        x, place = model(batch.noise, batch.y), batch.place.view(1)
        tensors = {key: value.index_select(0, place)[0] for key, value in broadcast["teachers"].items()}
        teacher = FunctionalModel(network).at(tensors)(x).logits
        student = FunctionalModel(network).at(broadcast["student"])(x).logits
        shares = broadcast["labels"]["shares"]
        weight = shares.index_select(0, place)[0][batch.y]  # [B]
        distance = (student - teacher.detach()).abs().mean(-1) if self.discrepancy == "l1" else kl_divergence(teacher, student)
        label = cross_entropy(teacher, batch.y)
        label = (weight * label).mean() if self.weighting == "per_sample" else weight.mean() * label.mean()
        discrepancy, spread = (weight * distance).mean(), diversity(batch.distances, x.flatten(1))
        value = -discrepancy + self.cls * label + self.dis * spread / len(shares)
        return value, {"discrepancy": discrepancy, "label_loss": label, "diversity_loss": spread}

    def train_model(
        self, server: Server, state: State, fixed: State, draw: DrawInputs, optimizer: Tensors | None, server_round: int
    ) -> tuple[State, Tensors, Tensor]:
        """Train the model for ``student_steps``. Returns the state, the optimizer's state, and the mean loss."""
        y, noise = draw("student", self.student_steps)
        generator = FunctionalModel(cached_generator(self.generator, server.task).to(server.device, server.dtype)).at(state["generator"])
        teachers = [FunctionalModel(server.model).at(tensors) for tensors in unstack_models(fixed["teachers"])]
        with torch.no_grad():  # the generator and the teachers are constant here
            x = torch.stack([generator(n, label) for n, label in zip(noise, y)])  # [S, B, ...]
            logits = torch.stack([torch.stack([teacher(images).logits for teacher in teachers]) for images in x])  # [S, K, B, C]
            target = (fixed["labels"]["shares"].T[y].movedim(-1, 1)[..., None] * logits.softmax(-1)).sum(1)  # [S, B, C]
        factor = self.student_lr_decay ** (server_round - 1)
        fitted = fit(
            server.model, state["model"], Batches(y, None, None, server.dtype, {"image": x, "target": target}), self.distillation,
            scale_lr(self.student_optimizer, factor), optimizer_state=optimizer,
        )  # fmt: skip
        return {**state, "model": fitted.tensors}, fitted.optimizer, fitted.metric_sums["loss"] / self.student_steps

    def distillation(self, model: FunctionalModel, batch: Batch, broadcast: State, client_state: State) -> tuple[Tensor, Metrics]:
        """Cross-entropy with the clients' weighted probabilities."""
        log_q = model(batch.image).logits.log_softmax(-1)
        value = -(batch.target * log_q).sum(-1).mean()
        return value / log_q.shape[-1] if self.mean_over_classes else value, {}

    def generate(self, server: Server, state: State, y: Tensor, seed: Seed) -> Generated:
        """Images of the current generator for labels ``y``."""
        module = cached_generator(self.generator, server.task).to(server.device, server.dtype)
        generator = FunctionalModel(module).at(state["generator"])
        noise = torch.randn(len(y), module.noise_size, generator=seed.torch(), dtype=server.dtype).to(y.device)
        pieces = zip(noise.split(server.batch_size), y.split(server.batch_size))
        return Generated(torch.cat([generator(*piece) for piece in pieces]), y, are_embeddings=False)


@lru_cache(maxsize=8)
def cached_generator(generator: Callable[..., nn.Module], task: Task) -> Any:
    """A cached generator module whose tensors are always overwritten before use."""
    with Seed(0).globally():  # so that the global generators are not advanced
        return generator(task)
