"""Modules that have moved: their old names work for one more minor release, with a DeprecationWarning.

Only the names of ``caffetools.__all__`` are a promise, but scripts have used modules directly. Importing an old name gives the
module of the new one, so that classes are the same objects under both names. To be removed in 0.3.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType

_PACKAGE = "caffetools."

# Old name → new name, without ``caffetools.``.
MOVED = {
    "bundle.sums": "bundle.check",
    "cli.tables": "cli.show",
    "data.card": "data.datasets.card",
    "data.data_layer": "data.layers.data",
    "data.dataset": "data.datasets.build",
    "data.folders": "util.folders",
    "data.hdf5_data": "data.layers.hdf5_data",
    "data.image_data": "data.layers.image_data",
    "data.listing": "data.datasets.listing",
    "data.memory_data": "data.layers.memory_data",
    "data.parallel": "util.threads",
    "data.prefetch": "util.threads",
    "data.reading": "data.layers.batch_source",
    "data.sharing": "data.db_handles",
    "data.window_data": "data.layers.window_data",
    "deploy.classifier": "infer.classifier",
    "deploy.features": "infer.features",
    "deploy.load": "infer.load",
    "deploy.onnx_file": "infer.export",
    "deploy.preprocess": "infer.preprocess",
    "files": "util.files",
    "layers.channels_prelu": "layers.fork_activation",
    "layers.depthwise": "layers.convolution",
    "layers.detection_onnx": "layers.detection",
    "layers.foreign": "layers.fork_fields",
    "layers.grn": "layers.fork_norm",
    "layers.kernel": "layers.im2col",
    "layers.l1_loss": "layers.fork_losses",
    "layers.labels": "layers.loss",
    "layers.recomputing": "layers.autograd",
    "layers.region": "layers.yolo_output",
    "layers.roi_align": "layers.roi",
    "layers.roi_onnx": "layers.roi",
    "layers.user_modules": "layers.plugin",
    "locks": "util.locks",
    "net.flow": "net.blob_versions",
    "net.memory": "net.malloc_tuning",
    "net.sharing": "net.param_sharing",
    "net.slots": "layers.blob_storage",
    "net.state": "net.phases",
    "net.weights_hdf5": "net.weights",
    "net.wiring": "net.topology",
    "pipeline.checks": "project.checks",
    "pipeline.demo": "project.demo",
    "pipeline.digits": "project.digits",
    "pipeline.evaluate": "project.evaluate",
    "pipeline.finetune": "project.finetune",
    "pipeline.learn": "project.run",
    "pipeline.memory": "project.manifest",
    "pipeline.narrator": "project.steps",
    "pipeline.settings": "project.training_schedule",
    "pipeline.summary": "project.report",
    "proto.dialect": "proto.forks.dialect",
    "proto.renumber": "proto.forks.renumber",
    "proto.upgrade": "proto.upgrades.v1",
    "proto.upgrade_v0": "proto.upgrades.v0",
    "proto.upgrading": "proto.upgrades.files",
    "pycaffe.blob": "layers.blob_view",
    "pycaffe.python_layer": "layers.python",
    "pycaffe.user_modules": "layers.plugin",
    "solver.accelerated": "solver.distributed",
    "solver.checkpoints.lock": "solver.checkpoints.snapshots",
    "solver.external": "solver.caffe_process",
    "solver.logs.metrics": "solver.logs.files",
    "solver.parallel": "solver.strategy",
    "solver.saving.hdf5": "solver.checkpoints.hdf5",
    "solver.saving.lock": "solver.checkpoints.snapshots",
    "solver.saving.processes": "solver.checkpoints.per_rank",
    "solver.saving.restore": "solver.checkpoints.restore",
    "solver.saving.resume": "solver.checkpoints.resume",
    "solver.saving.runstate": "solver.checkpoints.run_state",
    "solver.saving.snapshots": "solver.checkpoints.snapshots",
    "solver.training": "solver.run",
    "surgery.folding": "graph.passes.fold_batch_norm",
    "surgery.graph": "graph.graph",
    "surgery.heads": "graph.classifiers",
    "surgery.inputs": "graph.inputs",
    "surgery.inspection.comparison": "graph.weights_diff",
    "surgery.inspection.counting": "graph.counting",
    "surgery.inspection.difference": "graph.diff",
    "surgery.inspection.summary": "graph.summary",
    "surgery.manual_review": "surgery.changes",
    "surgery.projects.agreement": "project.shape_check",
    "surgery.projects.datasets": "project.retargeting",
    "surgery.projects.finetune": "project.solver_config",
    "surgery.projects.options": "project.data_config",
    "surgery.projects.output": "project.output",
    "surgery.projects.project": "project.retargeting",
    "surgery.projects.sources": "project.data_config",
    "surgery.projects.trainable": "project.trainable",
    "surgery.retargeting.added": "surgery.layer_spec",
    "surgery.retargeting.adding": "surgery.insertion",
    "surgery.retargeting.cutting": "surgery.truncation",
    "surgery.retargeting.depth": "surgery.layer_edits",
    "surgery.retargeting.growing": "surgery.class_incremental",
    "surgery.retargeting.learning": "surgery.freezing",
    "surgery.retargeting.leftovers": "surgery.changes",
    "surgery.retargeting.retarget": "surgery.retarget",
    "util.crc32c": "util.checksums",
    "util.prefetch": "util.threads",
}
# Names in those modules that were renamed: old module → old name → module and name of today.
RENAMED = {
    "proto.dialect": {"forced": ("proto.options", "override_dialect")},
    "solver.external": {name: ("solver.observers", name) for name in ("Followed", "Follower")},
}
_OLD_PACKAGES = {name.rpartition(".")[0] for name in MOVED}


class _Alias(importlib.abc.Loader):
    """Loads the new module under the old name."""

    def __init__(self, new: str):
        self._new = new
        self._spec: importlib.machinery.ModuleSpec | None = None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        warnings.warn(f"{spec.name} has moved to {self._new}; the old name works until caffetools 0.3", DeprecationWarning, stacklevel=2)
        module = importlib.import_module(self._new)
        self._spec = module.__spec__
        for old, (home, name) in RENAMED.get(spec.name.removeprefix(_PACKAGE), {}).items():
            setattr(module, old, getattr(importlib.import_module(_PACKAGE + home), name))
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec


class _OldPackage(ModuleType):
    """A package of moved modules. Importing it hides the public function of its name (``caffetools.deploy``), so it can be called as that."""

    def __call__(self, *args: object, **options: object) -> object:
        name = self.__name__.removeprefix(_PACKAGE)
        home = sys.modules[_PACKAGE.removesuffix(".")]._HOMES[name]  # noqa: SLF001 (the package itself)
        return getattr(importlib.import_module(_PACKAGE + home), name)(*args, **options)


class _Empty(importlib.abc.Loader):
    """Loads a package that holds nothing but moved modules."""

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _OldPackage(
            spec.name, f"Modules that have moved; ``{spec.name}`` is also a public function, if it is in ``caffetools.__all__``."
        )

    def exec_module(self, module: ModuleType) -> None:
        """Leave the module empty."""


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not fullname.startswith(_PACKAGE):
            return None
        name = fullname.removeprefix(_PACKAGE)
        if name in MOVED:
            return importlib.machinery.ModuleSpec(fullname, _Alias(_PACKAGE + MOVED[name]))
        if name in _OLD_PACKAGES:
            return importlib.machinery.ModuleSpec(fullname, _Empty(), is_package=True)
        return None


def install() -> None:
    """Let imports of old names find the new modules; asked only for names that nothing else knows."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
