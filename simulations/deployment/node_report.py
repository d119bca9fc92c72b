"""What a node of a deployment tells the server before the first round: its clients, the sizes of their data, the task, and its environment.

No example, label count or path leaves the node. Its host name does.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from flwr.app import ConfigRecord

from fedkd.errors import require
from fedkd.types import Task
from simulations.engine.worker_environment import Environment


@dataclass(frozen=True)
class ClientReport:
    """The data of one client.

    Args:
        num_train_examples: number of training examples.
        num_test_examples: number of local test examples.
        classes: the classes that have training examples, ascending.
        digest: hash of the client's examples. It identifies them, and says nothing about them.
    """

    num_train_examples: int
    num_test_examples: int
    classes: tuple[int, ...]
    digest: str


@dataclass(frozen=True)
class NodeReport:
    """A node.

    Args:
        clients: the clients that the node hosts.
        task: the task of its data.
        scale: the stored pixel that stands for 1.0.
        environment: its versions, code, device, and the digest of each client's data.
    """

    clients: Mapping[int, ClientReport]
    task: Task
    scale: float
    environment: Environment

    def to_record(self) -> ConfigRecord:
        """This report as a record of a message."""
        content = {"clients": {str(client): asdict(one) for client, one in self.clients.items()}}
        rest = {"task": asdict(self.task), "scale": self.scale, "environment": self.environment}
        return ConfigRecord({"report": json.dumps({**content, **rest})})

    @classmethod
    def from_record(cls, record: ConfigRecord) -> "NodeReport":
        """The report of a record that :meth:`to_record` made."""
        content = json.loads(str(record["report"]))
        clients = {int(client): ClientReport(**_with_tuples(values)) for client, values in content["clients"].items()}
        return cls(clients, Task(**_with_tuples(content["task"])), float(content["scale"]), content["environment"])

    def check_task(self, node: int, other: "NodeReport", other_node: int) -> None:
        """Check that two nodes hold data of one task.

        Raises:
            ConfigError: shape, classes, their names or the normalization differ.
        """
        ours, theirs = ({**asdict(report.task), "absent": (), "scale": report.scale} for report in (other, self))
        for name, value in ours.items():
            require(
                theirs[name] == value, f"{name} of the data of node {node}", f"must be that of node {other_node}, {value!r}", theirs[name]
            )


def _with_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with tuples for lists, which JSON has in their place."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
