"""One builder a dataset: raw downloads or a rendered world to ArrayRecord. `base.py` tells how to add one."""

from __future__ import annotations

from data_pipelines.builders.aic import Aic
from data_pipelines.builders.ap10k import Ap10k
from data_pipelines.builders.apt36k import Apt36k
from data_pipelines.builders.base import PoseBuilder
from data_pipelines.builders.coco import Coco
from data_pipelines.builders.coco_wholebody import CocoWholeBody
from data_pipelines.builders.crowdpose import CrowdPose
from data_pipelines.builders.custom import Custom
from data_pipelines.builders.halpe import Halpe
from data_pipelines.builders.interhand2d import InterHand2d
from data_pipelines.builders.mpii import Mpii
from data_pipelines.builders.ochuman import OcHuman
from data_pipelines.builders.pw3d import Pw3d
from data_pipelines.builders.synthetic import SYNTHETIC

_BUILDERS: tuple[type[PoseBuilder], ...] = (
    Coco,
    CocoWholeBody,
    Aic,
    Mpii,
    Ap10k,
    Apt36k,
    CrowdPose,
    OcHuman,
    InterHand2d,
    Pw3d,
    Halpe,
    Custom,
    *SYNTHETIC.values(),
)
BUILDERS: dict[str, type[PoseBuilder]] = {builder.dataset: builder for builder in _BUILDERS}
