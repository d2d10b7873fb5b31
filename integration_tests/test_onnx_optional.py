"""Without its extras the package says what to install, and the rest of it works."""

import subprocess
import sys

import pytest

BLOCKED = """
import sys
sys.modules[{module!r}] = None
from fair_prune_plugins.errors import MissingDependencyError
import fair_prune_plugins.groups
try:
    import fair_prune_plugins.{room}
except MissingDependencyError as error:
    print(error)
"""


@pytest.mark.parametrize(("module", "room"), [("onnx", "onnx"), ("onnxruntime", "onnx")])
def test_a_missing_package_is_named_with_the_extra_that_brings_it(module, room):
    code = BLOCKED.format(module=module, room=room)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert module in result.stdout
    assert "pip install 'fair-prune-plugins[onnx]'" in result.stdout
