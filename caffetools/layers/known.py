"""Layer types of forks that no class computes, and what surgery needs to know of them."""

from __future__ import annotations

from caffetools.layers.registry import declare
from caffetools.layers.traits import Traits

declare(["ImageSegData", "DenseImageData"], Traits(role="data", label_tops="labels"))
declare(["MultiBoxLoss"], Traits(role="loss", class_count=("multibox_loss_param.num_classes",)))
