"""Installs the shims, then registers every part with mmseg and mmengine.

The only place where import order matters. Configs name it in `custom_imports`; importing it again does nothing.
"""

from spark_seg import compat

compat.install()
compat.import_mmengine_optim()

# mmseg's own parts first, so that ours override nothing by accident.
import mmseg.datasets  # noqa: E402
import mmseg.models  # noqa: E402, F401

compat.patch_deepspeed_strategy()
compat.patch_accuracy()
compat.patch_checkpointing()

import spark_seg.datasets.bad_files  # noqa: E402
import spark_seg.datasets.preprocess  # noqa: E402
import spark_seg.datasets.sampling  # noqa: E402
import spark_seg.datasets.spark  # noqa: E402
import spark_seg.datasets.transforms.dropout  # noqa: E402
import spark_seg.datasets.transforms.faults  # noqa: E402
import spark_seg.datasets.transforms.geometry  # noqa: E402
import spark_seg.datasets.transforms.loading  # noqa: E402
import spark_seg.datasets.transforms.mixing  # noqa: E402
import spark_seg.datasets.transforms.packing  # noqa: E402
import spark_seg.datasets.transforms.photometric  # noqa: E402
import spark_seg.datasets.transforms.roi  # noqa: E402
import spark_seg.engine.hooks.checkpoint  # noqa: E402
import spark_seg.engine.hooks.early_stopping  # noqa: E402
import spark_seg.engine.hooks.logger  # noqa: E402
import spark_seg.engine.hooks.multi_scale  # noqa: E402
import spark_seg.engine.hooks.progress  # noqa: E402
import spark_seg.engine.hooks.run_record  # noqa: E402
import spark_seg.engine.hooks.scalars  # noqa: E402
import spark_seg.engine.hooks.trackers  # noqa: E402
import spark_seg.engine.loops  # noqa: E402
import spark_seg.engine.muon  # noqa: E402
import spark_seg.engine.optim  # noqa: E402
import spark_seg.engine.runner  # noqa: E402
import spark_seg.engine.strategy  # noqa: E402
import spark_seg.evaluation.metric  # noqa: E402
import spark_seg.models.heads  # noqa: E402
import spark_seg.models.losses  # noqa: E402
import spark_seg.models.losses_more  # noqa: E402
import spark_seg.models.roi  # noqa: E402
import spark_seg.submission.metric  # noqa: E402, F401
