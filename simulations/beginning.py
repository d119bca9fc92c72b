"""What a distillation begins with: a student's tensors, and a teacher's where and as the training computes."""

from pathlib import Path

from fedkd.bound import part
from fedkd.check import require
from fedkd.checkpoint import read_checkpoint, read_header
from fedkd.types import Tensors
from simulations.distill_folder import trained
from simulations.distill_setup import Setup


def may_begin(setup: Setup) -> None:
    """Refuse what the student cannot begin as.

    Raises:
        ValueError: ``init`` is not the folder of a finished distillation, or of another network.
    """
    init = setup.config.init
    if init in (None, "alone"):
        return
    if init == "teacher":
        assert setup.teacher is not None, "it is asked for"
        theirs = setup.teacher.student.state_dict()
    else:
        theirs = part(finished(Path(init).expanduser().absolute()), "student")
    mine, theirs = ({key: value.shape for key, value in one.items()} for one in (setup.learner.student.state_dict(), theirs))
    require(mine == theirs, "init", "must be of a network of the student's very form", init)


def finished(folder: Path) -> Tensors:
    """What was trained in ``folder``.

    Raises:
        ValueError: it is not the folder of a finished distillation.
    """
    header = read_header(folder)
    done = header is not None and bool(header["finished"]) and "learner" in read_checkpoint(folder).state
    require(done, "init", "must be null, teacher, alone, or the folder of a finished distillation", str(folder))
    return trained(folder)


def placed(tensors: Tensors, setup: Setup) -> Tensors:
    """A teacher's tensors where and as the training computes."""
    if setup.teacher is None:
        return {}
    like = setup.teacher.state_dict()
    return {key: tensors[key].to(value) for key, value in like.items()}
