"""Plays by role: which lines are a role's, how they are divided and cut into windows, and a run."""

import pandas as pd
import pytest

from fedkd.data.shakespeare import Shakespeare, lines_by_role
from fedkd.errors import ConfigError
from simulations.config import compose
from simulations.federation.runner import run_federation

SPEECH = "<SPEECH>{speakers}{lines}</SPEECH>"


def play(*speeches: tuple[str, list[str]]) -> bytes:
    parts = [
        SPEECH.format(
            speakers="".join(f"<SPEAKER>{name}</SPEAKER>" for name in speakers.split("+") if name),
            lines="".join(f"<LINE>{line}</LINE>" for line in lines),
        )
        for speakers, lines in speeches
    ]
    return f"<PLAY><TITLE>A Play</TITLE><ACT><SCENE>{''.join(parts)}</SCENE></ACT></PLAY>".encode()


def test_lines_belong_to_the_first_speaker_without_stage_directions():
    content = play(
        ("Iago", ["Hear <STAGEDIR>Aside</STAGEDIR>me", "<STAGEDIR>Exit</STAGEDIR>"]), ("", ["Nobody's"]), ("IAGO+Othello", ["And me"]),
        ("Othello", ["  No  more "]),
    )  # fmt: skip
    assert lines_by_role({"a.xml": content}) == {"A Play: IAGO": ["Hear me", "And me"], "A Play: OTHELLO": ["No  more"]}


def test_the_last_fifth_of_a_role_s_lines_is_its_test(tmp_path):
    """Five lines of two characters: four are for training. In the test, x is unknown. Targets are the inputs one place on."""
    (tmp_path / "a.xml").write_bytes(play(("A", ["ab", "ba", "aa", "bb", "ax"]), ("B", ["aa", "aa"])))
    task, train, test = Shakespeare(root=str(tmp_path), length=5, min_characters=0, max_roles=None)()
    assert task.vocabulary == ("<pad>", "<begin>", "<end>", "\n", "a", "b", "<unknown>") and task.uncounted == (0, 2)
    assert train.x.tolist() == [[1, 4, 5, 3, 5], [4, 3, 4, 4, 3], [5, 5, 3, 0, 0]]
    assert train.y.tolist() == [[4, 5, 3, 5, 4], [3, 4, 4, 3, 5], [5, 3, 2, 0, 0]]
    assert test.x.tolist() == [[1, 4, 6, 3, 0]] and test.y.tolist() == [[4, 6, 3, 2, 0]]
    assert train.group_names == ("A Play: A",) and train.groups.tolist() == [0, 0, 0]


def test_roles_are_clients_that_learn(tmp_path):
    speeches = [(name, [line] * 40) for name, line in (("A", "to be or not"), ("B", "the rest is"), ("C", "all that glitters"))]
    (tmp_path / "a.xml").write_bytes(play(*speeches))
    words = [
        "data=shakespeare", f"data.root={tmp_path}", "data.length=20", "data.min_characters=0", "partition=by_group", "strategy=fedavg",
        "model=char_lstm", "model.hidden_size=16", "optimizer.lr=2.0", "num_clients=3", "clients_per_round=3", "rounds=2", "local_steps=20",
        "clients_per_vmap=3", "engine=local", "progress=false", f"output={tmp_path / 'out'}",
    ]  # fmt: skip
    metrics = pd.read_csv(run_federation(compose(words)) / "metrics.csv")
    assert metrics["global_test_accuracy"].iloc[-1] > 0.2 and "global_test_macro_f1" not in metrics
    assert not [name for name in metrics if name.startswith("global_test_accuracy_class")]


def test_a_folder_without_plays_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="root must be a folder or a zip file with plays in XML"):
        Shakespeare(root=str(tmp_path), length=5, min_characters=0, max_roles=None)()
