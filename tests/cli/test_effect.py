"""Settings of the command line that another setting switches off."""

from __future__ import annotations

import pytest

from cli.effect import require_effect
from cli.errors import InputError
from cli.settings import Section, Setting, When, describe, make

NOISE = Section(
    "Noise.",
    {
        "layers": Setting(2, "How many."),
        "magnitude": Setting(9.0, "How strong.", when=(When("layers"),)),
        "ops": Setting((), "Which.", items=str),
        "cutout": Setting(
            4,
            "How large.",
            when=(When("ops", test=lambda ops: not ops or "cut" in ops, words="() or with cut"),),
        ),
    },
)
OWN = Section(
    "Own.",
    {name: s.but(default=None, none="the recipe's") for name, s in NOISE.items()},
    inherits="noise",
)
INNER = Section(
    "Inner.",
    {"hidden": Setting(3, "Units."), "loss": Setting(1.0, "Weight.", when=(When("^labeled"),))},
)
TRAIN = Section(
    "A training.",
    {
        "name": Setting("sgd", "Which.", choices=("sgd", "lars", "adam")),
        "nesterov": Setting(False, "Of sgd.", when=(When("name", ("sgd",)),)),
        "labeled": Setting(True, "Labels."),
        "hard": Setting(False, "Hard."),
        "smoothing": Setting(0.1, "Smoothing.", when=((When("labeled"), When("hard")),)),
        "width": Setting(1.0, "Width.", when=(When("/init", (None,)),)),
        "inner": Section(INNER.meaning, INNER, when=(When("name", ("lars", "adam")),)),
    },
    more={"noise": OWN},
)
ALL = Section(
    "All.",
    {
        "init": Setting(None, "Weights.", type=str, none="none"),
        "noise": NOISE,
        "teacher": TRAIN,
        "student": TRAIN,
    },
)


def refusal(given: dict[str, str | None], **values) -> str:
    """Returns the message about the flags of a recipe with these values.

    "" where all flags have an effect.
    """
    recipe = make(ALL)
    recipe.update_from_flattened_dict(
        {key.replace("__", "."): value for key, value in values.items()}
    )
    try:
        require_effect(recipe, ALL, given)
    except InputError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("key", "values", "why"),
    [
        (
            "teacher.nesterov",
            {"teacher__name": "adam"},
            "config.teacher.name is 'adam'; set --config.teacher.name to sgd",
        ),
        (
            "noise.magnitude",
            {"noise__layers": 0},
            "config.noise.layers is 0; set --config.noise.layers to a value above 0",
        ),
        (
            "noise.cutout",
            {"noise__ops": ("x",)},
            "config.noise.ops is ('x',); set --config.noise.ops to () or with cut",
        ),
        (
            "teacher.smoothing",
            {"teacher__labeled": False},
            "config.teacher.labeled is False; set --config.teacher.labeled to True",
        ),
        ("student.width", {"init": "b0"}, "config.init is 'b0'; set --config.init to None"),
        (
            "teacher.inner.hidden",
            {},
            "config.teacher.name is 'sgd'; set --config.teacher.name to lars or adam",
        ),
        (
            "teacher.inner",
            {},
            "config.teacher.name is 'sgd'; set --config.teacher.name to lars or adam",
        ),
        (
            "teacher.inner.loss",
            {"teacher__name": "adam", "teacher__labeled": False},
            "config.teacher.labeled is False; set --config.teacher.labeled to True",
        ),
    ],
)
def test_a_setting_that_another_one_switches_off_is_refused(key, values, why):
    assert (
        refusal({key: "1"}, **values)
        == f"--config.{key}=1 has no effect while {why}, or leave --config.{key} out"
    )
    assert refusal({key: "None"}, **values) == ""  # None leaves the setting open
    other = {"teacher.labeled": "True", "init": "b0", "noise.layers": "0"}
    assert refusal(other, **values) == ""  # only flags are refused, not the recipe's own values


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("teacher.nesterov", {}),
        ("student.nesterov", {"teacher__name": "adam"}),
        ("noise.magnitude", {}),
        ("noise.cutout", {"noise__ops": ("x", "cut")}),
        ("teacher.smoothing", {"teacher__labeled": False, "teacher__hard": True}),
        ("teacher.inner.hidden", {"teacher__name": "lars"}),
        ("teacher.unknown", {}),
        ("teacher.inner.unknown.deep", {"teacher__name": "lars"}),
    ],
)
def test_a_setting_with_an_effect_passes(key, values):
    assert refusal({key: "1"}, **values) == ""


def test_a_flag_takes_the_place_of_a_setting():
    """The network of the recipe's own weights decides no more where the flag names others."""
    given, recipe = {"teacher.width": "1"}, make(ALL, init="b0")
    with pytest.raises(InputError, match=r"config\.init is 'b0'"):
        require_effect(recipe, ALL, given)
    mine = When("/init", test=lambda init: init == "mine", words="mine")
    own = TRAIN["width"].but(when=(mine,))
    declared = Section(ALL.meaning, {**ALL, "teacher": Section("T.", {**TRAIN, "width": own})})
    require_effect(recipe, declared, given, {"init": "--init=mine"})
    with pytest.raises(InputError, match=r"config\.init is 'theirs'; set --config\.init to mine"):
        require_effect(make(ALL, init="mine"), declared, given, {"init": "--init=theirs"})
    require_effect(recipe, ALL, {"init": "b1"}, {"init": "--init=b1"})
    assert recipe.init == "b0"


def test_a_flag_takes_the_place_of_a_section():
    words = r"^--config\.noise\.layers=3 has no effect with --mine=D; leave one of them out$"
    with pytest.raises(InputError, match=words):
        require_effect(make(ALL), ALL, {"noise.layers": "3"}, {"noise": "--mine=D"})
    require_effect(make(ALL), ALL, {"teacher.width": "3"}, {"noise": "--mine=D"})


def test_a_switch_is_named_without_a_value():
    assert refusal({"teacher.nesterov": None}, teacher__name="adam").startswith(
        "--config.teacher.nesterov has no effect while"
    )


def own(teacher: dict, **noise) -> str:
    """Returns the message about noise.magnitude in a recipe with its own noise for the teacher.

    The student has no noise section, or one, too.
    """
    recipe = make(ALL)
    for name, values in {"teacher": teacher, **noise.pop("others", {})}.items():
        recipe[name].noise = make(OWN)
        recipe[name].noise.update(values)
    recipe.noise.update(noise)
    key = "teacher.noise.magnitude" if "magnitude" in teacher else "noise.magnitude"
    try:
        require_effect(recipe, ALL, {key: "1"})
    except InputError as error:
        return str(error)
    return ""


def test_a_part_of_a_training_inherits_what_it_leaves_open():
    assert "while config.teacher.noise.layers is 0; set --config.teacher.noise.layers" in own(
        {"magnitude": 1.0}, layers=0
    )
    assert own({"magnitude": 1.0, "layers": 3}, layers=0) == ""
    assert own({"layers": 3}, layers=0) == ""  # the recipe's magnitude, in the teacher
    assert "while config.noise.layers is 0" in own({"layers": 0}, layers=0)


def test_help_tells_what_a_setting_needs():
    text = (
        describe(ALL, "teacher.smoothing")
        + describe(ALL, "teacher.nesterov")
        + describe(ALL, "noise.cutout")
    )
    for sentence in (
        "No effect without `labeled` or `hard`.",
        "No effect without `name` sgd.",
        "No effect without `ops` () or with cut.",
    ):
        assert sentence in text
