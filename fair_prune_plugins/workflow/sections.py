"""What all parts of a configuration share."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Ratio = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A part of the configuration: unknown keys are refused and nothing changes after it is read."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False, coerce_numbers_to_str=True
    )


class NamedSection(Section):
    """Something out of a registry, with options and a label of one's own."""

    name: str = Field(description="the registered name")
    label: str = Field(default="", description="what the report calls it; empty takes the name")
    options: dict[str, Any] = Field(default_factory=dict, description="its own options")

    @property
    def title(self) -> str:
        """What the report calls it."""
        return self.label or self.name

    @property
    def slug(self) -> str:
        """The title as a part of a folder's name."""
        return re.sub(r"[^\w.-]", "-", self.title)


def named(value: Any) -> Any:
    """A bare name as what it stands for."""
    return {"name": value} if isinstance(value, str) else value


def near(word: str, allowed: Sequence[str]) -> str:
    """The nearest allowed word as a question, or nothing."""
    close = difflib.get_close_matches(word, allowed, n=1)
    return f"did you mean {close[0]!r}? " if close else ""
