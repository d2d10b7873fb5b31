"""What a run is told about its data."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from fair_prune_plugins.workflow.sections import Section, Share

PartsKey = Literal["column", "train", "validation", "test"]


class _Described(Section):
    name: str = Field(default="", description="what the data set is called in the report")
    target: str = Field(default="target", description="what is predicted, as the report calls it")
    description: str = Field(
        default="", description="one or two sentences for a reader who sees the task for the first time"
    )
    attribution: list[str] = Field(
        default_factory=list, description="lines that the data's licence asks to be shown; printed in the report"
    )


class Parts(Section):
    """Which rows are training, validation and test people, where the data says so itself."""

    column: str = Field(description="the column (table) or array (npz) that says which part a row belongs to")
    train: str = Field(default="train", description="its value for training people")
    validation: str | None = Field(
        default=None, description="its value for validation people; null draws them from the training people"
    )
    test: str | None = Field(
        default="test", description="its value for test people; null draws them from the training people"
    )


class PartedData(_Described):
    """Data that may say itself who is a training, validation or test person."""

    parts: Parts | None = Field(
        default=None,
        description="where the data itself says which part a row belongs to; otherwise parts are drawn at random",
    )
    validation: Share = Field(
        default=0.15,
        description="share drawn as validation people, who rank the channels and pick the worst group; of all "
        "people, or of the "
        "training people where data.parts names the test part",
    )
    test: Share = Field(
        default=0.2,
        description="share drawn as test people, who are used once, at the end; not to be set where data.parts names "
        "them",
    )
    classes: list[str] | None = Field(
        default=None, description="the classes in order; null takes the values of the training people, sorted"
    )


class TableData(PartedData):
    """A table of files (CSV or Parquet) and a folder or zip archive of images."""

    kind: Literal["table"] = Field(default="table", description="a table of files plus images")
    images: str = Field(
        description="folder or zip archive of the images; $NAME and ${NAME} are environment variables, "
        "${NAME:-folder} has a default"
    )
    table: str = Field(description=".csv or .parquet file; a name inside the archive or folder of images works too")
    file: str = Field(default="file", description="the column with the image's path inside data.images")
    target: str = Field(default="target", description="the column to predict")
    groups: Annotated[list[str], Field(min_length=1)] = Field(
        description="the sensitive columns; several make intersections, e.g. [race, gender]"
    )
    size: Annotated[int, Field(ge=8)] | None = Field(
        default=None,
        description="height and width in pixels to bring all images to; null keeps theirs, which must then agree",
    )
    channels: Literal[1, 3] = Field(default=3, description="1 grey, 3 RGB")
    skip_corrupt: bool = Field(
        default=False, description="leave damaged images out and count them, instead of stopping"
    )


class NpzData(PartedData):
    """Arrays in a NumPy .npz file."""

    kind: Literal["npz"] = Field(default="npz", description="arrays in one .npz file")
    path: str = Field(
        description="the .npz file; $NAME and ${NAME} are environment variables, ${NAME:-folder} has a default"
    )
    inputs: str = Field(default="inputs", description="array of inputs: uint8 images or float32 numbers")
    layout: Literal["nchw", "nhwc", "nhw", "features"] = Field(
        default="nchw",
        description="dimensions of data.inputs: images with channels first, channels last, without channels, or [N, "
        "features]",
    )
    labels: str = Field(
        default="labels", description="array of labels: class names, or numbers from 0 with data.classes"
    )
    groups: Annotated[list[str], Field(min_length=1)] = Field(
        description="the sensitive arrays; several make intersections"
    )


class FunctionData(_Described):
    """Any data set, from a function."""

    kind: Literal["function"] = Field(default="function", description="a data set that a function returns")
    function: str = Field(
        description="module:function that returns fair_prune_plugins.workflow.data.Samples; looked for beside this "
        "file too"
    )
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="keyword arguments of the function; the run's seed is added where it takes a seed and none is "
        "given here",
    )
