"""Answers of the study's process: its own errors as they are, its death in one line."""

from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError, RayTaskError

from aalnet.errors import ConfigError
from cluster.launch.ray_session import ClusterError
from tuner.server import answer_of


def raising(error: Exception) -> Any:
    """What stands for `ray.get` where the actor raised this."""

    def get(*_: Any, **__: Any) -> None:
        raise error

    return get


def test_its_own_error_comes_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    own = ConfigError("one line")
    wrapped = RayTaskError("ask", "a traceback", own).as_instanceof_cause()
    assert isinstance(wrapped, ConfigError)
    monkeypatch.setattr(ray, "get", raising(wrapped))
    with pytest.raises(ConfigError, match=r"^one line$") as caught:
        answer_of(None)
    assert caught.value is own


def test_its_death_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "get", raising(RayActorError(error_msg="first\nit died")))
    with pytest.raises(ClusterError) as caught:
        answer_of(None)
    line = str(caught.value)
    assert line == "the study's process failed: it died; the same command goes on from here"
