"""Registration with other packages on import, before or after this one."""

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

REGISTRATIONS = {
    "transformers.modeling_utils": "tensorpress.hugging_face.registration",
    "peft.tuners.lora.model": "tensorpress.hugging_face.lora_layer",
}
"""Modules of TensorPress whose `register` is called after a module of another package is
imported."""


def register_on_import() -> None:
    """Register with all imported packages, and with the others when they are imported."""
    for module in REGISTRATIONS:
        if module in sys.modules:
            _register(module)
        else:
            sys.meta_path.insert(0, _ImportHook(module))


class _ImportHook(MetaPathFinder):
    """A finder that finds one module as usual, and registers after it is executed.

    A failed import may succeed later, for example if torchvision does not match torch.
    """

    def __init__(self, module: str) -> None:
        self._module = module

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._module:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            _register(fullname)

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def _register(module: str) -> None:
    """Register with a package, or warn if its version is not supported."""
    try:
        import_module(REGISTRATIONS[module]).register()
    except (ImportError, AttributeError) as error:
        package = module.partition(".")[0]
        warnings.warn(
            f"TensorPress does not support this version of {package}: {error}", stacklevel=2
        )
