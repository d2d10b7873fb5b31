"""From what an auditor has - tables of predictions, ONNX files, torch modules - to what an audit takes.

Rows are always matched by id, never by position. What was understood how (which columns, logits or probabilities) is
said in :attr:`Inputs.notes`. Needs pandas; ONNX files need onnxruntime.
"""

from fair_prune_plugins.audit.reading.attributes import taken_apart
from fair_prune_plugins.audit.reading.inputs import Inputs, ModelFiles
from fair_prune_plugins.audit.reading.models import Network, predictions_of
from fair_prune_plugins.audit.reading.people import Parts, PeopleColumns, PeopleTable, output_name, read_people
from fair_prune_plugins.audit.reading.prediction_columns import Kind, PredictionColumns
from fair_prune_plugins.audit.reading.predictions import PredictionTable, read_predictions
from fair_prune_plugins.audit.reading.tables import read_tables

__all__ = [
    "Inputs",
    "Kind",
    "ModelFiles",
    "Network",
    "Parts",
    "PeopleColumns",
    "PeopleTable",
    "PredictionColumns",
    "PredictionTable",
    "output_name",
    "predictions_of",
    "read_people",
    "read_predictions",
    "read_tables",
    "taken_apart",
]
