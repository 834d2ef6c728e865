"""Registration with other packages when they are imported, before or after this one."""

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
"""The modules of ours whose `register` is called once a module of another package is there."""


def register_on_import() -> None:
    """Register with every package that is imported already, and with the others when they are."""
    for module in REGISTRATIONS:
        if module in sys.modules:
            _register(module)
        else:
            sys.meta_path.insert(0, _ImportHook(module))


class _ImportHook(MetaPathFinder):
    """A finder that finds one module as Python does, and registers whenever it was executed.

    An import that fails may succeed later: that of transformers does beside a torchvision that
    does not fit torch.
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
    """Register with a package; one of an unknown version is left as it is, with a warning."""
    try:
        import_module(REGISTRATIONS[module]).register()
    except (ImportError, AttributeError) as error:
        package = module.partition(".")[0]
        warnings.warn(f"TensorPress does not work with this {package}: {error}", stacklevel=2)
