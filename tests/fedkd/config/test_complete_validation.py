"""Every value is checked before any work: names, numbers, parameters of parts that are completed later, and parts inside parts."""

import pytest
import torch
from omegaconf import OmegaConf

from fedkd.config.build import build, located
from fedkd.config.validation import check_distillation, check_name, check_part, check_run
from fedkd.errors import ClientFailure, ConfigError
from simulations.config import compose
from simulations.distillation.runner import compose_distillation, prepare_distillation
from simulations.federation.runner import prepare_run


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "/x", "a/../../../x", "a/..", "a//b", "~/x", "a\nb", "a\tb", "=1+1", "+x", "-x", "@x", "a\\b", " a", "a/ b", ".x"],
)
def test_a_name_stays_inside_output(name):
    with pytest.raises(ConfigError, match="^name must be a folder name inside output"):
        check_name(name)


@pytest.mark.parametrize("name", ["digits", "a/b", "ümläut", "my runs", "a=b", "a-b", "a..b", "50%"])
def test_other_names_are_valid(name):
    check_name(name)


@pytest.mark.parametrize("text", ["1e-3", "1E-3", ".001", "0.1e-2", "+0.001"])
def test_a_number_has_many_forms(text):
    assert compose([f"optimizer.lr={text}"]).optimizer.lr == 0.001


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("key", ["optimizer.lr", "timeout", "partition.alpha", "strategy.generator_optimizer.betas", "data.mean"])
def test_a_run_s_numbers_are_finite(key, value):
    word = f"++{key}=[0.5,{value}]" if key.endswith(("betas", "mean")) else f"++{key}={value}"
    with pytest.raises(ConfigError, match=rf"^{key}(\.1)? must be a finite number, got {value}$"):
        check_run(compose([word]))


def test_a_distillation_s_numbers_are_finite():
    for word in ("distiller.temperature=nan", "lr_decay=inf", "milestones=[nan]"):
        with pytest.raises(ConfigError, match="must be a finite number"):
            check_distillation(compose_distillation([word]))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["~optimizer.lr"], r"^optimizer\.lr must be set"),
        (["~model.widths"], r"^model must set all parameters of .* missing are, got \['widths'\]"),
        (["~strategy.generator.hidden"], r"^strategy\.generator must set all parameters of FeatureMLP .*\['hidden'\]"),
        (["~rounds"], r"^rounds must be set"),
        (["optimizer._partial_=yes_please"], r"^optimizer\._partial_ must be true or false"),
        (["+optimizer._args_=[1]"], r"^optimizer\._args_ must be a parameter of SGD"),
        (["rounds=${nowhere}"], r"rounds .*nowhere"),
        (["++searchpath=[[1]]"], r"^searchpath must be a list of texts, got \[\[1\]\]"),
        (["++allow_targets=[{a: 1}]"], r"^allow_targets must be a list of texts, got "),
        (["+data.x=${nowhere}"], r"^data\.x must hold an interpolation that can be resolved: .*nowhere"),
    ],
)
def test_what_is_missing_is_named(words, message):
    with pytest.raises(ConfigError, match=message):
        check_run(compose(words))


def test_a_generator_is_built_before_any_training():
    """That of a strategy, and that of the images of a distillation, whose teacher would be trained first."""
    with pytest.raises(ConfigError, match=r"^strategy\.generator\.hidden must be > 0, got 0$"):
        prepare_run(compose(["engine=local", "strategy.generator.hidden=0"]))
    with pytest.raises(ConfigError, match=r"^image_source\.generator\.width must be > 0, got 0$"):
        prepare_distillation(
            compose_distillation(["teacher=mlp", "student=mlp", "image_source=synthetic", "image_source.generator.width=0"])
        )


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ConfigError("alpha must be > 0, got 0"), "partition.alpha must be > 0, got 0"),
        (ConfigError("alpha (or ALPHA) must be > 0, got 0"), "partition.alpha (or ALPHA) must be > 0, got 0"),
        (ConfigError("a file (or a folder) must be there"), "partition: a file (or a folder) must be there"),
        (ConfigError("/x/a.png must be an image"), "partition: /x/a.png must be an image"),
        (ConfigError("it divides columns"), "partition: it divides columns"),
        (KeyError("x"), "partition must be a part that can be built and called here, got KeyError: 'x'"),
        (ValueError(""), "partition must be a part that can be built and called here, got ValueError: no message"),
    ],
)
def test_only_parameters_are_glued_to_the_key(error, line):
    assert str(located("partition", error)) == line


def test_any_exception_of_a_part_becomes_a_line_with_its_key():
    config = OmegaConf.create({"a": {"_target_": "torch.optim.SGD", "params": None}})
    with pytest.raises(ConfigError, match=r"^a must be a part that can be built and called here, got TypeError: "):
        build(config, "a")
    assert issubclass(ClientFailure, RuntimeError), "not a ValueError: it passes through call_part as it is"


def test_a_part_inside_a_list_or_of_other_code_is_refused():
    with pytest.raises(ConfigError, match=r"os\.makedirs"):
        check_part({"_target_": "torch.optim.SGD", "_partial_": True, "lr": [{"_target_": "os.makedirs"}]}, "optimizer")
    assert torch.optim.SGD
