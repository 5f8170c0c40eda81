"""A record against the frozen dataclass that it stands for."""

from dataclasses import FrozenInstanceError, asdict, dataclass, field, replace

import pytest

from latent_directions.core.record import record


def classes(make):
    @make
    class Point:
        """Two numbers."""

        x: float
        y: float = 0.0
        labels: list = field(default_factory=list, repr=False)

        def __post_init__(self):
            if self.x is None:
                message = "x is needed"
                raise ValueError(message)

    return Point


@pytest.fixture(params=[record, dataclass(frozen=True)], ids=["record", "dataclass"])
def point(request):
    return classes(request.param)


def test_values_by_position_by_name_and_by_default(point):
    assert point(1, y=2) == point(x=1, y=2, labels=[]) == replace(point(1), y=2)
    assert point(1) != point(2)
    assert point(1) != (1, 0.0, [])
    assert asdict(point(1)) == {"x": 1, "y": 0.0, "labels": []}
    assert point(1).labels is not point(1).labels
    assert repr(point(1)).endswith("Point(x=1, y=0.0)")
    assert hash(point(1, 2, ())) == hash(point(1, 2, ()))


def test_the_class_can_check_its_values(point):
    with pytest.raises(ValueError, match="x is needed"):
        point(None)


@pytest.mark.parametrize(
    ("values", "named"), [((), {}), ((1, 2, [], 4), {}), ((1,), {"x": 1}), ((1,), {"z": 1})], ids=str
)
def test_wrong_values_are_a_type_error(point, values, named):
    with pytest.raises(TypeError):
        point(*values, **named)


def test_nothing_can_be_changed(point):
    made = point(1)
    with pytest.raises(FrozenInstanceError):
        made.x = 2
    with pytest.raises(FrozenInstanceError):
        del made.x
    assert made.x == 1


def test_by_identity_and_by_name_alone():
    @record(eq=False, kw_only=True)
    class Base:
        x: int

    @record(eq=False, kw_only=True)
    class Derived(Base):
        y: int = 2

    made = Derived(x=1)
    assert (made.x, made.y) == (1, 2)
    assert made != Derived(x=1)
    with pytest.raises(TypeError):
        Derived(1)
