"""One declaration of a setting: the recipe, the check, the help and the table that come from it."""

from __future__ import annotations

import pytest
from ml_collections import ConfigDict

from cli import settings
from cli.errors import InputError
from cli.settings import Section, Setting

NAME = Setting("sgd", "Which one.", choices=("sgd", "adam"))
INNER = Section("The inner part.", {"name": NAME}, others="any argument")
OUTER = Section(
    "All of it.",
    {
        "rate": Setting(0.5, "How fast.", at_least=0, below=1, unit="per step", source="Section 3"),
        "steps": Setting(None, "How long.", type=int, none="from the data", at_least=1),
        "strides": Setting((1, 2), "Of each stage.", choices=(1, 2), length=(2, 2)),
        "ops": Setting((), "Operations | of a table.", items=str),
        "flip": Setting(True, "Whether to mirror."),
        "inner": INNER,
    },
)


def test_a_recipe_has_the_defaults_and_their_types():
    config = settings.make(OUTER, rate=1)
    assert config.to_dict() == {
        **{"rate": 1.0, "steps": None, "strides": (1, 2), "ops": (), "flip": True},
        "inner": {"name": "sgd"},
    }
    assert type(config.rate) is float
    for key, value in (("steps", "many"), ("rate", "fast"), ("flip", 1), ("strides", 1)):
        with pytest.raises(TypeError):
            config[key] = value
        with pytest.raises(TypeError):
            settings.make(OUTER, **{key: value})
    config.steps = 3
    assert settings.make(OUTER).steps is None


def test_possible_values_pass():
    inner = {"name": "adam", "more": "x"}
    for values in ({}, {"steps": 1, "rate": 0}, {"strides": [2, 2], "ops": ["a"], "inner": inner}):
        settings.check_settings(values, OUTER)
        settings.check_settings(ConfigDict(values), OUTER)
    settings.check_settings(settings.make(OUTER), OUTER)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rate": 1.0}, "config.rate is 1.0; it must be at least 0 and below 1"),
        ({"rate": float("nan")}, "config.rate is nan; it must be a number, at least 0 and below 1"),
        ({"rate": "fast"}, "config.rate is 'fast'; it must be a number, at least 0 and below 1"),
        ({"rate": None}, "config.rate is None; it must be a number, at least 0 and below 1"),
        ({"rate": True}, "config.rate is True; it must be a number, at least 0 and below 1"),
        ({"steps": 0}, "config.steps is 0; it must be at least 1, or None"),
        ({"steps": 1.5}, "config.steps is 1.5; it must be a whole number, at least 1, or None"),
        ({"strides": (1, 3)}, "config.strides is (1, 3); it can be 2 whole numbers, each 1 or 2"),
        ({"strides": (1,)}, "config.strides is (1,); it can be 2 whole numbers, each 1 or 2"),
        ({"ops": (1,)}, "config.ops is (1,); it must be names"),
        ({"flip": 1}, "config.flip is 1; it must be True or False"),
        ({"inner": {"name": "x"}}, "config.inner.name is 'x'; it can be sgd or adam"),
        (
            {"inner": {"name": "adm"}},
            "config.inner.name is 'adm'; it can be sgd or adam; did you mean 'adam'?",
        ),
        ({"inner": 3}, "config.inner is 3; it must be a section, with name"),
        ({"rat": 3}, "config.rat is not a setting; did you mean rate?"),
        ({"xyz": 3}, "config.xyz is not a setting; known: rate, steps, strides, ops, flip, inner"),
        # The message names the first of two wrong values.
        ({"inner": {"name": 1}, "rate": 7}, "config.rate is 7; it must be at least 0 and below 1"),
    ],
)
def test_impossible_values_are_named_with_what_is_allowed(values, message):
    with pytest.raises(InputError) as error:
        settings.check_settings(values, OUTER)
    assert str(error.value) == message


def test_a_section_may_have_other_defaults():
    other = OUTER.but(rate=0.25, inner={"name": "adam"})
    assert (settings.make(other).rate, settings.make(other).inner.name) == (0.25, "adam")
    assert (other.meaning, other["inner"].others) == ("All of it.", "any argument")
    assert OUTER["rate"].default == 0.5
    with pytest.raises(ValueError, match=r"the default 1\.5 is not allowed: How fast"):
        OUTER.but(rate=1.5)
    with pytest.raises(ValueError, match="say what None means"):
        Setting(None, "A number.", type=int)


def test_a_recipe_may_have_more():
    section = Section("Part.", {"rate": OUTER["rate"]}, more={"inner": INNER})
    assert settings.make(section).to_dict() == {"rate": 0.5}
    assert [key for key, _ in section.but(rate=0.25).walk()] == ["rate", "inner.name"]
    settings.check_settings({"inner": {"name": "adam"}}, section)
    with pytest.raises(InputError, match=r"config\.inner\.name is 'x'"):
        settings.check_settings({"inner": {"name": "x"}}, section)
    assert settings.describe(section, "inner.name").startswith("--config.inner.name=sgd")


def test_help_about_a_key_or_a_section():
    expected = "--config.rate=0.5    (at least 0 and below 1)\n    How fast. Unit: per step."
    expected += " Source: Section 3."
    assert settings.describe(OUTER, "rate") == settings.describe(OUTER, "--config.rate") == expected
    inner = "The inner part.\n\n--config.inner.name=sgd    (sgd or adam)\n    Which one."
    assert settings.describe(OUTER, "inner") == inner
    everything = settings.describe(OUTER, "")
    assert everything.startswith("All of it.")
    assert all(f"--config.{key}=" in everything for key, _ in OUTER.walk())
    for key, message in (
        ("rte", "no setting 'rte'; did you mean rate?"),
        ("inner.nam", r"'inner\.nam'; did you mean name?"),
    ):
        with pytest.raises(InputError, match=message):
            settings.describe(OUTER, key)
    with pytest.raises(InputError, match=r"no setting 'rate\.more'; it is a setting"):
        settings.describe(OUTER, "rate.more")


def test_the_table_has_a_row_for_each_setting():
    rows = settings.table(OUTER.walk()).splitlines()
    assert rows[:3] == [
        "| setting | default | allowed | meaning |",
        "|---|---|---|---|",
        (
            "| `rate` | `0.5` | at least 0 and below 1 | How fast. Unit: per step. Source: Section"
            " 3. |"
        ),
    ]
    assert "| `steps` | `None` | at least 1, or None | How long. None: from the data. |" in rows
    assert rows[-1] == "| `inner.name` | `sgd` | sgd or adam | Which one. |"
    assert any("Operations \\| of a table." in row for row in rows) and len(rows) == 2 + 6
