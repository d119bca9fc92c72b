"""FedDF: the server distills the clients' ensemble into their mean, on public images without labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedkd.distillation.logit_distillation import compute_logits, cosine_schedule, distill_logits
from fedkd.errors import require
from fedkd.federation.server import Server
from fedkd.losses.kl import kl_divergence
from fedkd.metrics.accuracy import evaluate
from fedkd.models.ensemble import Member
from fedkd.server_distillation import ServerDistillation
from fedkd.training.batch import Batch, Batches
from fedkd.training.functional_model import FunctionalModel
from fedkd.training.optimizers import OptimizerFactory
from fedkd.types import Examples, Metrics, State, Tensors, Update


@dataclass(kw_only=True)
class FedDF(ServerDistillation):
    """Client: ``CE(z, y)``.

    Server: ``w <- sum_k (n_k / n) w_k``, then ``min_w KL(softmax(mean_k z_k(x)) || softmax(z_w(x)))``.

    x are public images and z_k the logits of client k's model. The shipped values are those of the public code's README, except for the
    number of steps, which is 10,000 there. Where examples are held out (``validation_fraction``), the server evaluates on them every
    ``every`` steps, stops early, and keeps the best model. steps = 0 is FedAvg.

    Source:
        Lin, Kong, Stich, Jaggi: Ensemble distillation for robust model fusion in federated learning, NeurIPS 2020.
        Public code: epfml/federated-learning-public-code @ 44dd555.

    Args:
        optimizer: ``parameters -> optimizer`` of the server.
        steps: Maximum number of steps per round, >= 0.
        batch_size: Public images per step, > 1.
        average: Average the teachers' ``logits`` or ``probabilities``.
        schedule: Learning rate over the steps, ``cosine`` or ``constant``.
        every: Steps between evaluations on held-out examples, > 0.
        patience: Steps without improvement after which training stops, > 0.

    Deviations:
        - Where clients have different networks, all of them teach one student, which has the first network. The public code has a student
          for each network. A client with another network keeps its own model.
        - Dropping the worst teachers is not implemented.
        - The public code can also average losses. Its gradient equals that of ``probabilities``, so it is not an option here.
        - Gradients are not clipped, and images are drawn with replacement.
        - The mean model is evaluated too. A distillation that only lowers the accuracy is undone.
        - Without held-out examples all steps are done and the last model is kept.
        - BatchNorm statistics must be averaged, because the teachers need them.
    """

    server_summary: ClassVar[str] = "mean of models, then distillation of the ensemble on public images"
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
        """Average the models, then distill their ensemble into the mean."""
        after, metrics = super().aggregate(server, state, updates, server_round)
        assert server.public_data is not None, "the strategy declares that it needs public data"
        generator, size = (server.seed / "public").torch(), len(server.public_data)
        drawn = torch.randint(size, (self.steps, self.batch_size), generator=generator).to(server.device)
        used, positions = drawn.unique(return_inverse=True)  # the teachers process only the images that some step uses
        images = server.public_data.subset(used)
        teacher_logits = self.teacher(server, self.teachers(server, updates), images) if self.steps else images.y.new_zeros(0)

        def batches_of(steps: slice) -> Batches:
            """The batches of a slice of steps."""
            index = positions[steps]
            return Batches(images.y[index], index, images, server.dtype, {"teacher": teacher_logits[index]})

        distilled = distill_logits(
            server.model, after["model"], batches_of, self.steps, self.distillation, self.optimizer,
            schedule=cosine_schedule(self.steps) if self.schedule == "cosine" else None, evaluate_every=self.every, patience=self.patience,
            evaluate=None if server.validation is None else lambda tensors: self.validation_accuracy(server, tensors),
        )  # fmt: skip
        more = {f"distillation_{name}": value for name, value in distilled.means.items()}
        metrics = {**metrics, **more, "distillation_steps": torch.tensor(distilled.num_steps)}
        return {**after, "model": distilled.tensors, "average": after["model"]}, metrics

    def server_steps(self, server: Server, updates: Sequence[Update], server_round: int) -> int:
        """The steps of the distillation, if it does not stop early."""
        return self.steps

    def teacher(self, server: Server, teachers: Sequence[Member], images: Examples) -> Tensor:  # [N, C]
        """Logits [N, C] of the ensemble on all images."""
        logits = torch.stack([compute_logits(*teacher, images, server.batch_size, server.dtype) for teacher in teachers])  # [K, N, C]
        if self.average == "logits":
            return logits.mean(0)
        return logits.softmax(-1).mean(0).clamp_min(torch.finfo(logits.dtype).tiny).log()

    def distillation(self, model: FunctionalModel, batch: Batch, broadcast: State, client_state: State) -> tuple[Tensor, Metrics]:
        """``KL(softmax(teacher) || softmax(student))``, mean over the batch."""
        return kl_divergence(batch.teacher, model(batch.x).logits).mean(), {}

    def validation_accuracy(self, server: Server, tensors: Tensors) -> float:
        """Accuracy on the held-out examples, in 0..1."""
        assert server.validation is not None, "examples are held out"
        student = FunctionalModel(server.model).at(tensors)
        return evaluate(
            student, server.validation, server.batch_size, server.task.num_classes, server.dtype, server.task.uncounted
        ).accuracy
