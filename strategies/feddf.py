"""FedDF: the server distils the clients' ensemble into their mean, on public images without labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedkd.distillation.logit_distillation import cosine, distill_logits, logits_on
from fedkd.errors import require
from fedkd.federation.server import Server
from fedkd.losses.kl import kl_divergence
from fedkd.metrics.accuracy import evaluate
from fedkd.server_distillation import ServerDistillation
from fedkd.training.batch import Batch, Batches
from fedkd.training.functional_model import FunctionalModel
from fedkd.training.optimizers import OptimizerFactory
from fedkd.types import Examples, Metrics, State, Tensors, Update


@dataclass(kw_only=True)
class FedDF(ServerDistillation):
    """Server: ``min_w KL(softmax(mean_k z_k(x)) || softmax(z_w(x)))`` over public images x, from w the clients' mean (steps = 0: FedAvg).

    Lin, Kong, Stich, Jaggi: Ensemble distillation for robust model fusion in federated learning, NeurIPS 2020; the settings are those of
    its public code. The clients train as in FedAvg. Where examples are held out (``validation``), the server judges by them and stops.

    Deviations: the paper's groups of unlike networks, and leaving out the worst teachers, are not implemented. The public code's third
    way to average, over losses, has the gradient of ``probabilities`` and is therefore not a choice. Gradients are not clipped, images are drawn
    with replacement, and the clients' mean is judged too, so that a distillation which only harms is undone. The teachers'
    BatchNorm statistics must travel. Without held-out examples all steps are done and the last model stands.

    Args:
        optimizer: ``parameters -> optimizer`` of the server.
        steps: >= 0, at most so many a round.
        batch_size: > 0, public images a step.
        average: of the teachers' ``logits``, or of their ``probabilities``.
        schedule: ``cosine`` over the steps, or ``constant``.
        every: > 0, steps between judgements on held-out examples.
        patience: > 0, steps without a gain after which it stops.
    """

    server_summary: ClassVar[str] = "mean of models; distils the ensemble on public images"
    needs_public_data: ClassVar[bool] = True

    optimizer: OptimizerFactory
    steps: int
    batch_size: int
    average: Literal["logits", "probabilities"]
    schedule: Literal["cosine", "constant"]
    every: int
    patience: int

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.steps >= 0, "steps", "must be >= 0 (0 is FedAvg)", self.steps)
        for name in ("batch_size", "every", "patience"):
            require(getattr(self, name) > 0, name, "must be > 0", getattr(self, name))

    def aggregate(self, server: Server, state: State, updates: Sequence[Update], server_round: int) -> tuple[State, Metrics]:
        after, metrics = super().aggregate(server, state, updates, server_round)
        random, number = (server.seed / "public").torch(), len(server.public_data)
        where = torch.randint(number, (self.steps, self.batch_size), generator=random).to(server.device)
        needed, places = where.unique(return_inverse=True)  # what no step asks for, no teacher is asked about
        images = server.public_data.subset(needed)
        teacher = self.teacher(server, [u.state["model"] for u in updates], images) if self.steps else None

        def piece(steps: slice) -> Batches:
            index = places[steps]
            return Batches(images.y[index], index, images, server.dtype, {"teacher": teacher[index]})

        distilled = distill_logits(
            server.model, after["model"], piece, self.steps, self.distillation, self.optimizer,
            schedule=cosine(self.steps) if self.schedule == "cosine" else None, every=self.every, patience=self.patience,
            judge=None if server.validation is None else lambda tensors: self.judge(server, tensors),
        )  # fmt: skip
        more = {f"distillation_{name}": value for name, value in distilled.means.items()}
        metrics = {**metrics, **more, "distillation_steps": torch.tensor(distilled.num_steps)}
        return {**after, "model": distilled.tensors, "average": after["model"]}, metrics

    def teacher(self, server: Server, models: Sequence[Tensors], images: Examples) -> Tensor:  # [N, C]
        """What the ensemble says of every image, as logits."""
        said = torch.stack([logits_on(server.model, one, images, server.batch_size, server.dtype) for one in models])  # [K, N, C]
        return said.mean(0) if self.average == "logits" else said.softmax(-1).mean(0).clamp_min(torch.finfo(said.dtype).tiny).log()

    def distillation(self, model: FunctionalModel, batch: Batch, broadcast: State, client_state: State) -> tuple[Tensor, Metrics]:
        """``KL(softmax(teacher) || softmax(student))``, the mean over a batch."""
        return kl_divergence(batch.teacher, model(batch.x).logits).mean(), {}

    def judge(self, server: Server, tensors: Tensors) -> float:
        """Accuracy on the held-out examples."""
        student = FunctionalModel(server.model).at(tensors)
        return evaluate(student, server.validation, server.batch_size, server.task.num_classes, server.dtype).accuracy
