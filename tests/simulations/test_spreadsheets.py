"""Files that users write on Windows or with a spreadsheet: a byte order mark, and lines that end with CRLF."""

import pytest
from omegaconf import OmegaConf

from simulations.cli import catalog
from simulations.config import apply_tuned_params, compose

TUNED = "option,key,value,seed,selected,seconds\nfedavg,optimizer.lr,0.5,0,1,3\n"
OPTION = "# A step size of mine.\n_target_: torch.optim.SGD\n_partial_: true\nlr: 0.05\n"


def windows(path, text):
    """Write ``text`` with a byte order mark and CRLF."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(("\ufeff" + text.replace("\n", "\r\n")).encode())
    return path


def test_tuned_values_are_read(tmp_path):
    config = compose(["strategy=fedavg", f"tuned_params={windows(tmp_path / 'tuned.csv', TUNED)}"])
    apply_tuned_params(config, "strategy")
    assert config.optimizer.lr == 0.5


@pytest.mark.parametrize(("old", "new", "header"), [(",", ";", "option;key"), ("option", "strategy", "strategy, key")])
def test_other_separators_and_columns_are_named(tmp_path, old, new, header):
    config = compose(["strategy=fedavg", f"tuned_params={windows(tmp_path / 'tuned.csv', TUNED.replace(old, new))}"])
    rule = "tuned_params must be a file that fedkd tune has written, with the columns option, key, value, selected, got"
    with pytest.raises(ValueError, match=f"{rule} .*: it has the columns {header}"):
        apply_tuned_params(config, "strategy")


def test_options_of_a_folder_are_composed_and_described(tmp_path):
    path = windows(tmp_path / "mylab/conf/optimizer/mine.yaml", OPTION)
    config = compose([f"searchpath=[{tmp_path / 'mylab'}]", "optimizer=mine"])
    assert OmegaConf.to_container(config.optimizer)["lr"] == 0.05
    assert catalog.sentence(path) == "A step size of mine." and catalog.load(path)[0]["lr"] == 0.05


def test_a_file_of_search_paths_is_read(tmp_path, monkeypatch):
    windows(tmp_path / "mylab/conf/optimizer/mine.yaml", OPTION)
    windows(tmp_path / "fedkd.yaml", "searchpath: [mylab]\n")
    monkeypatch.chdir(tmp_path)
    assert compose(["optimizer=mine"]).optimizer.lr == 0.05
