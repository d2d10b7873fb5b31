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


def test_a_package_that_is_there_but_broken_is_named_with_its_reason(tmp_path):
    """An extension module that cannot be loaded raises an ImportError without a name."""
    (tmp_path / "onnx.py").write_text("raise ImportError('DLL load failed')")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n" + BLOCKED.format(module="nothing", room="onnx")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "None" not in result.stdout
    assert "onnx (DLL load failed); install it with: pip install" in result.stdout
