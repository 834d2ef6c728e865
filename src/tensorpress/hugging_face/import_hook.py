"""Registration with transformers when it is imported, before or after this package."""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

MODULE = "transformers.modeling_utils"
"""The module of transformers that loads weights; importing transformers alone is not enough."""


def register_on_import() -> None:
    """Register with transformers now if it can load models already, else when it can."""
    if MODULE in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _ImportHook())


class _ImportHook(MetaPathFinder):
    """A finder that finds one module as Python does, and registers once it was executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            _register()

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def _register() -> None:
    from tensorpress.hugging_face.registration import register

    register()
